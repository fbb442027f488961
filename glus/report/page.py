"""The page of a report: pictures and charts are embedded, there are no scripts, fonts or style sheets to load.

Everything that comes from a file or an argument is escaped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from glus.data.records import Record
from glus.errors import InputError
from glus.inference.curves import curve, time_chart
from glus.io import disk_errors, expect, field, write_bytes
from glus.report.figures import Cases, choose, compare, mean_of, over_time, percent
from glus.report.pictures import draw_expression, video_name
from glus.report.runs import Groups, Key, Run, Scores, Truth, key_of

SHOWN_FRAMES = 4
LONG_TABLE = 12
"""Rows; a longer one starts closed."""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Nothing is loaded or run, whatever a page might hold."""
_STYLE = """
:root { color-scheme: light dark; --line: #8883; --soft: #8882; --dim: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .6rem; }
.dim { color: var(--dim); }
.facts { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0; }
.fact { background: var(--soft); border-radius: .6rem; padding: .5rem 1rem; }
.fact b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
summary { font-weight: 600; margin: 1rem 0 .4rem; cursor: pointer; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 1rem; }
.charts svg { width: 100%; height: auto; border-radius: .4rem; } .charts figure { margin: 0; }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1rem; }
.case { background: var(--soft); border-radius: .6rem; padding: .7rem; }
.case img { width: 100%; border-radius: .3rem; display: block; } .case figure { margin: .4rem 0 0; }
.exp { border-top: 1px solid var(--line); padding: .8rem 0 1rem; } .exp:target { background: var(--soft); }
.line { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1.2rem; margin-bottom: .5rem; }
.text { font-weight: 600; flex: 1 1 20rem; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .5em; }
.score { font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: inline-block; width: 90px; height: .5em; border-radius: .25em; background: var(--line); }
.bar i { display: block; height: 100%; border-radius: inherit; background: currentColor; }
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .5rem; }
.strip { margin-bottom: .7rem; }
.strip figure { margin: 0; } .strip img { width: 100%; border-radius: .3rem; display: block; }
figcaption { font-size: .8rem; color: var(--dim); }
"""


@dataclass(frozen=True)
class Material:
    """All that a page is made of.

    Attributes:
        records: every expression of the set.
        starts: key frames with all scores by video and expression, or nothing.
    """

    records: Sequence[Record]
    runs: Sequence[Run]
    truth: Truth
    groups: Groups
    starts: Mapping[str, Any]


def name_of(run: Run) -> str:
    """Its name with its colour before it."""
    return f'<span class="swatch" style="background:rgb{run.colour}"></span>{escape(run.name)}'


def picture(source: str, label: str, caption: str) -> str:
    """A figure; `label` and `caption` are HTML already."""
    return f'<figure><img src="{source}" alt="{label}"><figcaption>{caption}</figcaption></figure>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML already."""
    lines = [("th", head), *(("td", row) for row in rows)]
    body = "".join("<tr>" + "".join(f"<{t}>{c}</{t}>" for c in cells) + "</tr>" for t, cells in lines)
    return f'<div class="wide"><table>{body}</table></div>'


def head_part(title: str, material: Material) -> str:
    """Title, legend, and the totals: of one run as boxes, of several as a table."""
    tint = "Tint: the model's mask." if len(material.runs) == 1 else "Tint: the mask of the run of that colour."
    outline = " White outline: the true mask." if material.truth.codes else ""
    head = f'<h1>{escape(title)}</h1><p class="dim">{tint}{outline}</p>'
    if len(material.runs) > 1:
        return head + _totals_table(material.runs)
    run = material.runs[0]
    facts = [(name, f"{100 * value:.2f}") for name, value in run.totals.items()]
    facts.append(("expressions", str(len(material.records))))
    if run.missing:
        facts.append(("missing masks", str(run.missing)))
    if run.summary:
        facts += [("frames", str(run.summary["frames"])), ("frames without [SEG]", str(run.summary["failures"]))]
        facts += [("frames per second", speed)] if (speed := _speed(run)) != "-" else []
    boxes = "".join(f'<div class="fact"><b>{escape(value)}</b>{escape(name)}</div>' for name, value in facts)
    return f'{head}<div class="facts">{boxes}</div>'


def _speed(run: Run) -> str:
    return f"{run.summary['frames_per_second']:.1f}" if run.summary.get("frames_this_run") else "-"


def _totals_table(runs: Sequence[Run]) -> str:
    columns = [name for name in ("J", "F", "J&F", "A", "R") if any(name in run.totals for run in runs)]
    told = [f"against {runs[0].name}", "better on", "worse on", "scored", "missing masks", "without [SEG]"]
    rows = []
    for run in runs:
        values = [f"{100 * run.totals[name]:.2f}" if name in run.totals else "-" for name in columns]
        change = None if run is runs[0] else compare(runs[0], run)
        against = ["", "", ""] if change is None else [f"{100 * change[0]:+.2f}", *map(str, change[1:])]
        counts = [str(len(run.scores)), str(run.missing), str(run.summary.get("failures", "-")), _speed(run)]
        rows.append([name_of(run), *map(escape, [*values, *against, *counts])])
    return table(list(map(escape, ["run", *columns, *told, "frames per second"])), rows)


def groups_part(material: Material) -> str:
    """J&F by kind of expression, best run in bold."""
    runs = [run for run in material.runs if run.scores]
    parts = []
    for by, groups in material.groups.items() if runs else ():
        rows = []
        for name, keys in groups.items():
            means = [mean_of(run, keys) for run in runs]
            best = max((mean for mean in means if mean is not None), default=None)
            bold = len(runs) > 1 and best is not None
            cells = [f"<b>{percent(m)}</b>" if bold and m == best else percent(m) for m in means]
            rows.append([escape(name), str(len(keys)), *cells])
        body = table([escape(by), "expressions", *map(name_of, runs)], rows)
        is_open = " open" if len(rows) <= LONG_TABLE else ""
        parts.append(f"<details{is_open}><summary>By {escape(by)} ({len(rows)})</summary>{body}</details>")
    return f"<h2>J&amp;F by kind</h2>{''.join(parts)}" if parts else ""


def time_part(material: Material) -> str:
    """Charts of J over the clip: of everything, and of each type."""
    everything = list(map(key_of, material.records))
    types = material.groups.get("type", {})
    charts = []
    for name, keys in [("all", everything), *types.items()]:
        series = {run.name: (run.colour, over_time(run, keys)) for run in material.runs}
        lines = {run: (colour, values) for run, (colour, values) in series.items() if values is not None}
        if lines:
            chart = time_chart(lines, "mean J over the clip")
            charts.append(f"<figure><figcaption>{escape(name)}</figcaption>{chart}</figure>")
    note = '<p class="dim">Mean J; clips of any length stretched from first to last frame.</p>'
    return f'<h2>Score over time</h2>{note}<div class="charts">{"".join(charts)}</div>' if charts else ""


def score_line(scores: Scores | None) -> str:
    """J, F and J&F of an expression with a bar and, if the frames' values are known, a curve of J."""
    if scores is None:
        return '<span class="dim">not scored</span>'
    parts = [
        f'<span class="score">{name} {percent(value)}</span>'
        for name, value in (("J", scores.region), ("F", scores.boundary))
    ]
    parts.append(
        f'<span class="score"><b>J&amp;F {percent(scores.both)}</b> '
        f'<span class="bar"><i style="width:{100 * scores.both:.0f}%"></i></span></span>'
    )
    if scores.by_frame:
        parts.append(curve(list(scores.by_frame.values()), "J"))
    return "".join(parts)


def key_frame_line(record: Record, starts: Mapping[str, Any]) -> tuple[str, int | None]:
    """Where the run was to start and the selector's scores over the frames, and the index of that frame."""
    entry = starts.get(record.video, {}).get(record.exp_id)
    if entry is None:
        return "", None
    where = f"key frames: {record.video}.{record.exp_id}"
    scores = field(entry, "scores", dict, where, "entry")
    if set(scores) != set(record.frames) or (key := entry.get("key_frame")) not in scores:
        raise InputError(f"{where} has scores of other frames than the video's; score the set again")
    values = [float(expect(scores[name], (int, float), where, f"scores.{name}")) for name in record.frames]
    index = record.frames.index(key)
    line = (
        f'<span class="score">key frame {escape(key)}</span>{curve(values, "key-frame score", index, unit=False)}'
    )
    return line, index


Pictures = dict[Key, dict[int, list[str]]]
"""`src` of the pictures by expression and frame, one for each run."""


def expression_part(record: Record, number: int, material: Material, pictures: Mapping[int, list[str]]) -> str:
    """HTML of one expression, with a row of frames for each run."""
    line, key = key_frame_line(record, material.starts)
    kinds = [
        next((name for name, keys in material.groups.get(by, {}).items() if key_of(record) in keys), "")
        for by in ("type", "claim")
    ]
    rows = []
    for place, run in enumerate(material.runs):
        figures = []
        for i, sources in pictures.items():
            label = escape(record.frames[i])
            figures.append(
                picture(sources[place], f"frame {label}", f"{label}{', key frame' if i == key else ''}")
            )
        name = f"<span>{name_of(run)}</span>" if len(material.runs) > 1 else ""
        scores = score_line(run.scores.get(key_of(record)))
        rows.append(f'<div class="line">{name}{scores}</div><div class="strip">{"".join(figures)}</div>')
    return (
        f'<div class="exp" id="e{number}"><div class="line"><span class="text">{escape(record.text)}</span>'
        f'<span class="dim">{escape(" · ".join(filter(None, kinds)))}</span>{line}'
        f'<a href="{quote(video_name(record))}">video</a></div>{"".join(rows)}</div>'
    )


def cases_part(chosen: Sequence[Cases], material: Material, pictures: Pictures) -> str:
    """Cards of the chosen cases, each with its telling frame and a link to the expression."""
    numbers = {key_of(record): number for number, record in enumerate(material.records)}
    parts = []
    for cases in chosen:
        cards = []
        for key, frame in cases.frames.items():
            record = material.records[numbers[key]]
            index = _case_frame(record, frame)
            shown = [
                picture(
                    pictures[key][index][material.runs.index(run)],
                    f"frame {escape(record.frames[index])}",
                    f"{name_of(run)} <b>{percent(run.scores[key].both)}</b>, frame {escape(record.frames[index])}"
                    + (f": J {percent(run.scores[key].by_frame[frame])}" if frame is not None else ""),
                )
                for run in cases.runs
            ]
            cards.append(
                f'<div class="case"><a href="#e{numbers[key]}">{escape(record.text)}</a>{"".join(shown)}</div>'
            )
        parts.append(f'<h3>{escape(cases.title)}</h3><div class="cases">{"".join(cards)}</div>')
    return f"<h2>Cases</h2>{''.join(parts)}" if parts else ""


def _case_frame(record: Record, name: str | None) -> int:
    return len(record) // 2 if name is None else record.frames.index(name)


def draw_all(
    material: Material, chosen: Sequence[Cases], limit: int, out: Path
) -> tuple[dict[Key, set[int]], Pictures]:
    """Draw the first `limit` expressions and all chosen ones.

    Returns:
        The frames of each expression's row, and the pictures of these frames and of the cases.
    """
    cases: dict[Key, set[int]] = {}
    records = {key_of(record): record for record in material.records}
    for group in chosen:
        for key, name in group.frames.items():
            cases.setdefault(key, set()).add(_case_frame(records[key], name))
    keys = [key for number, key in enumerate(records) if number < limit or key in cases]
    rows: dict[Key, set[int]] = {}
    pictures: Pictures = {}
    for key in tqdm(keys, unit="expression", desc="report", disable=None):
        record = records[key]
        rows[key] = set(np.linspace(0, len(record) - 1, SHOWN_FRAMES, dtype=int).tolist())
        if (start := key_frame_line(record, material.starts)[1]) is not None:
            rows[key].add(start)
        wanted = rows[key] | cases.get(key, set())
        pictures[key] = draw_expression(record, material.runs, material.truth, wanted, out)
    return rows, pictures


def write_report(title: str, material: Material, out: Path, limit: int, cases: int) -> Path:
    """Write `<out>/report.html` and `<out>/videos/<video>/<exp_id>.mp4`.

    Args:
        limit: how many expressions to show, from the first; the cases are shown besides.
        cases: how many of each sort.

    Raises:
        InputError: a mask or frame is missing or of another size, or `out` cannot be written.
    """
    if not material.records:
        raise InputError("nothing to report: no expressions")
    chosen = choose(material.runs, cases)
    rows, pictures = draw_all(material, chosen, limit, out)
    parts = [head_part(title, material), groups_part(material), time_part(material)]
    parts.append(cases_part(chosen, material, pictures))
    told = "all" if len(rows) == len(material.records) else "the first ones and the cases above"
    count = f"{len(rows)} of {len(material.records)}: {told}"
    parts.append(f'<h2>Expressions <span class="dim">{count}</span></h2>')
    video = None
    for number, record in enumerate(material.records):
        if (key := key_of(record)) in rows:
            if record.video != video:
                video = record.video
                parts.append(f'<h3>{escape(video)} <span class="dim">{len(record)} frames</span></h3>')
            strip = {i: sources for i, sources in pictures[key].items() if i in rows[key]}
            parts.append(expression_part(record, number, material, strip))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    path = out / "report.html"
    with disk_errors(path):
        write_bytes(path, page.encode())
    return path
