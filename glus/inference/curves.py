"""Values over frames as small pictures: SVG, which pages embed and browsers open. No plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from glus.overlay import colour_of

_INK = "#666"
WIDTH, HEIGHT, EDGE = 720, 300, 12
LEFT, TOP, ROW = 56, 16, 18
"""Of a chart: its plot's place, and the height of a line of its legend."""


def _points(values: Sequence[float], low: float, high: float, box: tuple[float, float, float, float]) -> list[str]:
    """Values as "x,y" in a box (left, top, width, height), `high` at its top."""
    left, top, width, height = box
    step = width / max(1, len(values) - 1)
    span = (high - low) or 1.0
    return [f"{left + i * step:.1f},{top + height * (high - value) / span:.1f}" for i, value in enumerate(values)]


def _dot(point: str, radius: float, fill: str) -> str:
    x, y = point.split(",")
    return f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{fill}"/>'


def curve(values: Sequence[float], label: str, mark: int | None = None, unit: bool = True) -> str:
    """Values over frames, to stand in a line of text.

    Args:
        label: what they are.
        mark: frame to point out.
        unit: the values lie in 0..1, which is then the scale; else it is from the least to the greatest.
    """
    low, high = (0.0, 1.0) if unit else (min(values), max(values))
    points = _points(values, low, high, (1, 1, 118, 24))
    return (
        f'<svg width="120" height="26" role="img" aria-label="{escape(label)} over the frames">'
        '<rect width="120" height="26" rx="3" fill="#8882"/>'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        f"{_dot(points[mark], 3, '#ff5c57') if mark is not None else ''}</svg>"
    )


def score_chart(
    scores: Sequence[Sequence[float]], names: Sequence[str], texts: Sequence[str], keys: Sequence[int]
) -> str:
    """A picture of its own: the scores of every sentence over the frames, and its key frame.

    Args:
        scores: by sentence and frame.
        names: of the frames.
        keys: the key frame of each sentence.
    """
    low, high = min(map(min, scores)), max(map(max, scores))
    box = (LEFT, TOP, WIDTH - LEFT - EDGE, HEIGHT - TOP - 3 * EDGE)
    bottom = box[1] + box[3]
    lines, legend = [], []
    for number, (values, text, key) in enumerate(zip(scores, texts, keys, strict=True)):
        points, colour = _points(values, low, high, box), f"rgb{colour_of(number)}"
        lines.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<line x1="{points[key].split(",")[0]}" x2="{points[key].split(",")[0]}" y1="{box[1]}" y2="{bottom}" '
            f'stroke="{colour}" stroke-dasharray="3 4"/>{_dot(points[key], 5, colour)}'
        )
        told = f"{text}: key frame {names[key]}, score {values[key]:.4g}"
        y = HEIGHT + ROW * number
        legend.append(f'<circle cx="{LEFT}" cy="{y}" r="5" fill="{colour}"/>')
        legend.append(f'<text x="{LEFT + 12}" y="{y + 4}">{escape(told)}</text>')
    marks = [(LEFT - 6, box[1] + 4, f"{high:.3g}", "end"), (LEFT - 6, bottom + 4, f"{low:.3g}", "end")]
    marks += [(LEFT, bottom + 16, names[0], "start"), (WIDTH - EDGE, bottom + 16, names[-1], "end")]
    words = "".join(f'<text x="{x}" y="{y}" text-anchor="{side}">{escape(t)}</text>' for x, y, t, side in marks)
    height = HEIGHT + ROW * len(texts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12" fill="{_INK}" role="img" aria-label="key-frame scores over the frames">'
        f'<rect width="100%" height="100%" fill="#161616"/><rect x="{LEFT}" y="{TOP}" width="{box[2]}" '
        f'height="{box[3]}" fill="none" stroke="{_INK}"/><g fill="#bbb">{words}</g>{"".join(lines)}'
        f'<g fill="#ddd">{"".join(legend)}</g></svg>\n'
    )
