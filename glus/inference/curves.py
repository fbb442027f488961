"""Values over frames as small pictures: SVG, which pages embed and browsers open. No plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from glus.overlay import Colour, colour_of

_INK = "#666"
WIDTH, HEIGHT, EDGE = 720, 300, 12
LEFT, TOP, ROW = 56, 16, 18
"""Of a chart: its plot's place, and the height of a line of its legend."""
_BOX = (LEFT, TOP, WIDTH - LEFT - EDGE, HEIGHT - TOP - 3 * EDGE)


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


def _chart(
    lines: str,
    legend: Sequence[tuple[str, str]],
    marks: tuple[str, str, str, str],
    label: str,
) -> str:
    """A picture around lines drawn in `_BOX`.

    Args:
        lines: SVG.
        legend: colour and text of its entries.
        marks: what stands at the greatest and least value, the first and last frame.
        label: what the picture shows.
    """
    left, top, width, height = _BOX
    bottom = top + height
    entries = []
    for number, (colour, text) in enumerate(legend):
        y = HEIGHT + ROW * number
        entries.append(f'<circle cx="{LEFT}" cy="{y}" r="5" fill="{colour}"/>')
        entries.append(f'<text x="{LEFT + 12}" y="{y + 4}">{escape(text)}</text>')
    places = [(left - 6, top + 4, "end"), (left - 6, bottom + 4, "end"), (left, bottom + 16, "start")]
    places.append((WIDTH - EDGE, bottom + 16, "end"))
    words = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{side}">{escape(text)}</text>'
        for (x, y, side), text in zip(places, marks, strict=True)
    )
    full = HEIGHT + ROW * len(legend)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{full}" viewBox="0 0 {WIDTH} {full}" '
        f'font-family="sans-serif" font-size="12" fill="{_INK}" role="img" aria-label="{escape(label)}">'
        f'<rect width="100%" height="100%" fill="#161616"/><rect x="{left}" y="{top}" width="{width}" '
        f'height="{height}" fill="none" stroke="{_INK}"/><g fill="#bbb">{words}</g>{lines}'
        f'<g fill="#ddd">{"".join(entries)}</g></svg>\n'
    )


def _line(points: Sequence[str], colour: str) -> str:
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>'


def time_chart(series: Mapping[str, tuple[Colour, Sequence[float]]], label: str) -> str:
    """A picture of its own: values in 0..1 from the first to the last frame, by name, each in its colour."""
    lines = "".join(_line(_points(v, 0, 1, _BOX), f"rgb{colour}") for colour, v in series.values())
    legend = [(f"rgb{colour}", name) for name, (colour, _) in series.items()]
    return _chart(lines, legend, ("1", "0", "first frame", "last"), label)


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
    top, bottom = _BOX[1], _BOX[1] + _BOX[3]
    lines, legend = [], []
    for number, (values, text, key) in enumerate(zip(scores, texts, keys, strict=True)):
        points, colour = _points(values, low, high, _BOX), f"rgb{colour_of(number)}"
        x = points[key].split(",")[0]
        lines.append(
            f'{_line(points, colour)}<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" '
            f'stroke="{colour}" stroke-dasharray="3 4"/>{_dot(points[key], 5, colour)}'
        )
        legend.append((colour, f"{text}: key frame {names[key]}, score {values[key]:.4g}"))
    marks = (f"{high:.3g}", f"{low:.3g}", names[0], names[-1])
    return _chart("".join(lines), legend, marks, "key-frame scores over the frames")
