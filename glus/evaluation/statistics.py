"""Mean, recall and decay of a per-frame score, and their data-set means.

Source: reference evaluation.md 1.5 (official DAVIS statistics).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RECALL_THRESHOLD = 0.5
DECAY_BINS = 4
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Statistics of one object's per-frame scores; NaN where a bin holds no number."""

    mean: float
    recall: float
    decay: float

    def as_list(self) -> list[float]:
        """`[mean, recall, decay]`, the order of the official code."""
        return [self.mean, self.recall, self.decay]


def decay_edges(count: int, uint8_edges: bool = False) -> list[int]:
    """First and last frame of the four decay bins of `count` frames, as 5 indices.

    Neighbouring bins share a frame. With `uint8_edges` the indices wrap modulo 256, a defect of the
    official code (reference evaluation.md 1.5); it exists only to reproduce such numbers.
    """
    exact = np.round(np.linspace(1, count, DECAY_BINS + 1) + 1e-10).astype(np.int64) - 1
    return [int(edge) % 256 if uint8_edges else int(edge) for edge in exact]


def _nan_mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def statistics(values: Sequence[float] | FloatArray, uint8_edges: bool = False) -> Statistics:
    """Mean, recall (share of frames above 0.5) and decay (first bin minus last bin) of `values`.

    NaN frames are left out of the means and count as not above 0.5.

    Args:
        values: [frames] scores in 0..1 or NaN; at least one frame.
        uint8_edges: compute the bins in 8 bits as the official code does; the decay of 256 or more frames
            is then usually NaN.

    Raises:
        ValueError: `values` is empty.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("statistics need at least one frame")
    edges = decay_edges(scores.size, uint8_edges)
    ends = [(edge + 1) % 256 if uint8_edges else edge + 1 for edge in edges]
    first = scores[edges[0] : ends[1]]
    last = scores[edges[-2] : ends[-1]]
    return Statistics(
        mean=_nan_mean(scores),
        recall=float(np.mean(scores > RECALL_THRESHOLD)),
        decay=_nan_mean(first) - _nan_mean(last),
    )


def dataset_means(region: Mapping[str, Statistics], boundary: Mapping[str, Statistics]) -> dict[str, float]:
    """Plain means over all objects of all sequences, in the columns of the official global CSV.

    Args:
        region: object name -> statistics of J.
        boundary: object name -> statistics of F, same keys.

    Raises:
        ValueError: there are no objects, or the keys differ.
    """
    if not region or region.keys() != boundary.keys():
        raise ValueError("dataset means need the J and F statistics of at least one object")
    j_mean, j_recall, j_decay = np.mean([s.as_list() for s in region.values()], axis=0)
    f_mean, f_recall, f_decay = np.mean([s.as_list() for s in boundary.values()], axis=0)
    return {
        "J&F-Mean": float((j_mean + f_mean) / 2),
        "J-Mean": float(j_mean),
        "J-Recall": float(j_recall),
        "J-Decay": float(j_decay),
        "F-Mean": float(f_mean),
        "F-Recall": float(f_recall),
        "F-Decay": float(f_decay),
    }
