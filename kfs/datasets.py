"""The data sets by the original's names, and the IoU files that say how good each frame is (kfs.md, 5.1, 5.2).

IoU files lie at `<root>/<video>/<expression>.json`: a list with one number from 0 to 1 per frame of the video, in
the order of the frame names, or null where there is none (nothing is learned from, or measured at, such a frame).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from glus.data.datasets import find_layout
from glus.data.records import Record
from glus.errors import InputError
from glus.io import expect, read_json

NAMES = {
    "mevis_train": ("mevis", "train"),
    "mevis_val": ("mevis", "valid_u"),
    "mevis_test": ("mevis", "valid"),
    "refytvos_train": ("refyoutube_vos", "train"),
    "refytvos_valid": ("refyoutube_vos", "valid"),
}
"""The original's name -> data set and split here."""

Ious = tuple[float | None, ...]
"""One per frame; None where there is none."""


@dataclass(frozen=True)
class Annotated:
    """An expression with the IoUs of its video's frames, at least one of them a number."""

    record: Record
    ious: Ious


def parse_set(name: str) -> tuple[str, str]:
    """Data set and split of `mevis_train`, or of `<data set>:<split>`.

    Raises:
        InputError: neither; the message lists what there is.
    """
    if name in NAMES:
        return NAMES[name]
    dataset, found, split = name.partition(":")
    if not found or not split:
        raise InputError(
            f"unknown data set {name!r}; known: {', '.join(NAMES)}, or DATASET:SPLIT as in mevis:train"
        )
    find_layout(dataset)
    return dataset, split


def read_ious(path: Path, frames: int) -> Ious:
    """The IoU file of an expression on a video of so many frames.

    Raises:
        InputError: missing, no list of that length, or an entry that is neither null nor a number from 0 to 1.
    """
    values = expect(read_json(path, "IoU file"), list, path, "(top level)")
    if len(values) != frames:
        raise InputError(f"{path}: {len(values)} IoUs for {frames} frames; annotate the expression again")
    for index, value in enumerate(values):
        expect(value, (int, float, type(None)), path, f"[{index}]")
        if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
            raise InputError(f"{path}: the IoU of frame {index} is {value}, not a number from 0 to 1")
    return tuple(None if value is None else float(value) for value in values)


def read_annotations(root: Path, records: Sequence[Record]) -> list[Annotated]:
    """The records that have an IoU file with a number in it, in order.

    Raises:
        InputError: no such folder; a file that cannot be used; none of the records has one.
    """
    if not root.is_dir():
        raise InputError(f"no folder of IoU files at {root}; python -m kfs annotate makes one")
    found = []
    for record in records:
        path = root / record.video / f"{record.exp_id}.json"
        if path.is_file():
            annotated = Annotated(record, read_ious(path, len(record)))
            if any(value is not None for value in annotated.ious):
                found.append(annotated)
    if not found:
        raise InputError(
            f"{root} has no IoU file for any of {len(records)} expressions; is it of another data set?"
        )
    return found


def check_known(root: Path, records: Iterable[Record]) -> None:
    """Refuse IoU files of expressions that no record is about.

    Where several data sets were annotated into one folder, videos that no record is of belong to the others.

    Raises:
        InputError: there is one; names it.
    """
    known = {(record.video, record.exp_id) for record in records}
    videos = {video for video, _ in known}
    shared = len(list(root.glob("annotation-*.json"))) > 1
    for path in sorted(root.rglob("*.json")):
        video, expression = path.parent.relative_to(root).as_posix(), path.stem
        if video == "." or path.name.startswith(".") or (shared and video not in videos):
            continue
        if (video, expression) not in known:
            raise InputError(
                f"{path}: no expression {expression} of a video {video} in the data sets it is used for"
            )
