"""How good scores are: against the IoU that GLUS really reached at each frame. No torch.

A frame without an IoU (null in its file) is no place to start from: chosen, it counts as 0. The rank correlation
leaves such frames out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from glus.errors import InputError
from kfs.datasets import Ious, read_ious
from kfs.key_frames import Scores


@dataclass(frozen=True)
class Choice:
    """One expression about one video.

    Attributes:
        rank: Spearman's rank correlation of scores and IoUs, ties at their mean rank; None where either is the
            same for all frames.
        chosen, first, random, oracle: the IoU at the frame with the highest score (among equals the first), at
            the first frame, at a random one (its expectation), and the highest there is.
    """

    rank: float | None
    chosen: float
    first: float
    random: float
    oracle: float


@dataclass(frozen=True)
class Comparison:
    """Means over expressions; `ranked` of them have a rank correlation, whose mean is None where none has."""

    expressions: int
    ranked: int
    rank_correlation: float | None
    chosen: float
    first: float
    random: float
    oracle: float

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Rank correlation, -1 to 1; None where one side has a single value or less."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def measure(scores: Sequence[float], ious: Ious) -> Choice:
    """Compare scores with IoUs, frame by frame, equally many.

    Raises:
        ValueError: not as many of one as of the other, or none.
    """
    if len(scores) != len(ious) or not scores:
        raise ValueError(f"{len(scores)} scores and {len(ious)} IoUs of one video")
    pairs = [(score, iou) for score, iou in zip(scores, ious, strict=True) if iou is not None]
    values = [0.0 if iou is None else iou for iou in ious]
    best = max(range(len(scores)), key=scores.__getitem__)
    rank = spearman([score for score, _ in pairs], [iou for _, iou in pairs])
    return Choice(rank, values[best], values[0], sum(values) / len(values), max(values))


def summarise(choices: Sequence[Choice]) -> Comparison:
    """Means over expressions, each counting once; at least one."""
    ranks = [choice.rank for choice in choices if choice.rank is not None]

    def mean(name: str) -> float:
        return float(np.mean([getattr(choice, name) for choice in choices]))

    return Comparison(
        expressions=len(choices),
        ranked=len(ranks),
        rank_correlation=float(np.mean(ranks)) if ranks else None,
        **{name: mean(name) for name in ("chosen", "first", "random", "oracle")},
    )


def compare(scores: Scores, root: Path) -> Comparison:
    """Compare score files (`kfs.key_frames.read_scores`) with the IoU files below `root`.

    Expressions without an IoU file are left out.

    Raises:
        InputError: an IoU file without scores or of another length; no expression has both.
    """
    if not root.is_dir():
        raise InputError(f"no folder of IoU files at {root}; python -m kfs annotate makes one")
    choices, used = [], set()
    for video, expressions in scores.items():
        for expression, frames in expressions.items():
            path = root / video / f"{expression}.json"
            if path.is_file():
                used.add(path)
                choices.append(measure([frames[name] for name in sorted(frames)], read_ious(path, len(frames))))
    # The videos that were scored, all of them: a score that is missing would pass unseen.
    unused = sorted(path for video in scores for path in (root / video).glob("[!.]*.json") if path not in used)
    if unused:
        raise InputError(f"{unused[0]} has no scores; score the expression again")
    if not choices:
        raise InputError(f"{root} has no IoU file for any of the expressions that were scored")
    return summarise(choices)
