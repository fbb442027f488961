"""Numbers of a report: means by group, J over time, and which cases are worth a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from glus.report.runs import Groups, Key, Run

POINTS = 21
"""Of the chart of J over time: every 5 % of the clip."""


@dataclass(frozen=True)
class Cases:
    """Expressions worth a look.

    Attributes:
        runs: the runs to show of them.
        frames: by expression, the frame that shows best why; None where scores of frames are not known.
    """

    title: str
    runs: tuple[Run, ...]
    frames: dict[Key, str | None]


def mean_of(run: Run, keys: Iterable[Key]) -> float | None:
    """Mean J&F over those expressions that are scored; None without any."""
    values = [run.scores[key].both for key in keys if key in run.scores]
    return float(np.mean(values)) if values else None


def compare(first: Run, other: Run) -> tuple[float, int, int] | None:
    """Mean change of J&F from `first` to `other` over what both have, and how often it is better and worse."""
    common = first.scores.keys() & other.scores.keys()
    if not common:
        return None
    changes = np.array([other.scores[key].both - first.scores[key].both for key in sorted(common)])
    return float(changes.mean()), int((changes > 0).sum()), int((changes < 0).sum())


def over_time(run: Run, keys: Iterable[Key]) -> list[float] | None:
    """Mean J at `POINTS` times from the first to the last frame, every clip stretched to the same length."""
    clips = [list(run.scores[key].by_frame.values()) for key in keys if key in run.scores]
    clips = [clip for clip in clips if clip]
    if not clips:
        return None
    times = np.linspace(0, 1, POINTS)
    values: list[float] = np.mean([np.interp(times, np.linspace(0, 1, len(c)), c) for c in clips], axis=0).tolist()
    return values


def choose(runs: Sequence[Run], count: int) -> list[Cases]:
    """Expressions on which the other runs gain or lose most against the first, and the best and worst of all runs.

    Of equals the earlier one is taken. A case that is no gain (or loss) at all is not shown as one.
    """
    out = []
    for other in runs[1:]:
        pair = (runs[0], other)
        names = f"{other.name} than {runs[0].name}"
        out.append(_cases(f"Better by {names}", pair, lambda v: v[1] - v[0], count, least=0))
        out.append(_cases(f"Worse by {names}", pair, lambda v: v[0] - v[1], count, least=0))
    whose = " for all" if out else ""
    out.append(_cases(f"Best{whose}", runs, sum, count))
    out.append(_cases(f"Worst{whose}", runs, lambda values: -sum(values), count))
    return [cases for cases in out if cases.frames]


def _cases(
    title: str,
    runs: Sequence[Run],
    rank: Callable[[Sequence[float]], float],
    count: int,
    least: float = -np.inf,
) -> Cases:
    """The `count` expressions of highest `rank` (over the runs' J&F, above `least`), each with such a frame."""
    common = [key for key in runs[0].scores if all(key in run.scores for run in runs)]
    ranks = {key: rank([run.scores[key].both for run in runs]) for key in common}
    first = sorted((key for key in common if ranks[key] > least), key=lambda key: -ranks[key])[:count]
    frames: dict[Key, str | None] = {}
    for key in first:
        clips = [run.scores[key].by_frame for run in runs]
        names = [name for name in clips[0] if all(name in clip for clip in clips)]
        # J is exactly 1 where nothing is to be found and nothing was: no picture to learn from.
        names = [name for name in names if any(clip[name] < 1 for clip in clips)] or names
        frames[key] = max(names, key=lambda name: rank([clip[name] for clip in clips]), default=None)
    return Cases(title, tuple(runs), frames)


def markdown(runs: Sequence[Run], groups: Groups) -> str:
    """J&F in percent of every run by type, as a Markdown table; empty when nothing is scored."""
    runs = [run for run in runs if run.scores]
    if not runs:
        return ""
    types = groups.get("type", {})
    lines = ["| " + " | ".join(["", "all", *types]) + " |", "|---" * (len(types) + 2) + "|"]
    for run in runs:
        values = [run.totals["J&F"], *(mean_of(run, keys) for keys in types.values())]
        lines.append(f"| {run.name} | " + " | ".join(percent(value) for value in values) + " |")
    counts = [max(len(run.scores) for run in runs), *map(len, types.values())]
    lines.append("| *expressions* | " + " | ".join(f"*{count}*" for count in counts) + " |")
    return "\n".join(lines) + "\n"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
