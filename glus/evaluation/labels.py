"""Label maps: one array per frame whose values are object ids (0 background, 255 void).

`glus.evaluation.png.read_labels` reads them: palette images by index, gray ones by value (reference
evaluation.md 5.2 and 6).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glus.errors import InputError
from glus.evaluation.kernels import compiled

LabelMap = npt.NDArray[np.uint8]
VOID = 255


@compiled
def _flag(labels: LabelMap, flags: LabelMap) -> None:
    for row in labels:
        last = 0
        for label in row:
            if label != last:
                flags[label] = 1
                last = label


def present_ids(labels: LabelMap) -> list[int]:
    """The ids other than 0 in a label map, ascending."""
    flags = np.zeros(256, np.uint8)
    _flag(labels, flags)
    return [int(i) for i in np.flatnonzero(flags) if i]


def listing(folder: Path) -> list[str]:
    """Names in a folder; none where there is no such folder. Raises InputError when it cannot be listed."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from None


def frame_names(folder: Path) -> list[str]:
    """Sorted names, without suffix, of the PNG files in `folder`; see `listing`."""
    return sorted(name[:-4] for name in listing(folder) if name.endswith(".png") and not name.startswith("."))


def folder_names(root: Path) -> list[str]:
    """Sorted names of the folders in `root`.

    Raises:
        InputError: `root` is not a folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def merge_objects(scores: Sequence[npt.NDArray[Any]], threshold: float = 0.5, background: float = 0.1) -> LabelMap:
    """Merge score maps of single objects into one label map, uint8 [H, W] with 1 for the first object.

    Scores below `threshold` count as 0, the background competes with a constant score, and the highest score
    wins; on ties the background, then the first object (reference evaluation.md 3.3). With binary masks the
    first object that covers a pixel gets it.

    Args:
        scores: per object [H, W], all of one shape: float in 0..1, or bool.

    Raises:
        ValueError: no objects, more than 254, or different shapes.
    """
    if not 0 < len(scores) < VOID or len({s.shape for s in scores}) != 1:
        raise ValueError("merging needs 1 to 254 score maps of one shape")
    labels = np.zeros(scores[0].shape, np.uint8)
    if all(s.dtype == np.bool_ for s in scores) and threshold <= 1 and background < 1:
        for label in range(len(scores), 0, -1):
            labels[scores[label - 1]] = label
        return labels
    best = np.full(scores[0].shape, background, np.float32)
    for label, score in enumerate(scores, start=1):
        wins = (score >= threshold) & (score > best)
        labels[wins] = label
        best[wins] = score[wins]
    return labels
