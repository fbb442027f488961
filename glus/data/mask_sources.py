"""Masks of an expression's objects, read frame by frame when they are drawn (reference glus.md 4.3).

What a file says is taken at its word or refused: only an explicit null is "not there", and a mask must have its
frame's size (D17, D18).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from glus.data.datasets import find_layout
from glus.data.mask_store import MaskStore
from glus.data.records import Record
from glus.errors import InputError
from glus.evaluation import png
from glus.evaluation.tracks import RleTrack


class MaskSource(Protocol):
    """The masks of one data set; picklable."""

    def check(self, records: Sequence[Record]) -> None:
        """Raise an InputError if it can be told at once that the records cannot be trained on."""
        ...

    def masks(self, record: Record, indices: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """The objects of an expression on some frames: bool [objects, len(indices), H, W]; see `merge_instances`.

        Args:
            indices: into `record.frames`.
            size: (height, width) of those frames.

        Raises:
            InputError: masks that are missing, damaged or of another size.
        """
        ...


class RleMasks:
    """Run-length codes by annotation in one JSON file (MeViS, ReVOS, LV-VIS).

    Args:
        may_be_empty: expressions may name no annotation, and then mean nothing that is there (ReVOS).
    """

    def __init__(self, path: Path, may_be_empty: bool = False) -> None:
        self.store = MaskStore(path)
        self.may_be_empty = may_be_empty

    def check(self, records: Sequence[Record]) -> None:
        """Every annotation is there, with an entry per frame."""
        for record in records:
            if not record.anno_ids and not self.may_be_empty:
                raise InputError(f"{_name(record)} has no anno_id; training needs to know which masks it means")
            for anno in record.anno_ids:
                if fault := RleTrack(self.store.track(anno), self._where(record, anno)).fault(record.frames):
                    raise InputError(fault)

    def _where(self, record: Record, anno: str) -> str:
        return f"{_name(record)}: {self.store.path}, annotation {anno}"

    def masks(self, record: Record, indices: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """See `MaskSource`."""
        out = np.zeros((len(record.anno_ids), len(indices), *size), np.bool_)
        for row, anno in zip(out, record.anno_ids, strict=True):
            track = RleTrack(self.store.track(anno), self._where(record, anno))
            for place, index in zip(row, indices, strict=True):
                mask = track.mask(index, record.frames[index])
                if mask is not None and mask.shape != size:
                    raise _other_size(record, index, f"annotation {anno} of {self.store.path}", mask.shape, size)
                if mask is not None:
                    place[:] = mask.unpack()
        return out


def object_numbers(record: Record) -> list[int]:
    """The palette indices of an expression's objects, at least one.

    Raises:
        InputError: none, or one that is no number from 1 to 255.
    """
    if not record.obj_ids:
        raise InputError(f"{_name(record)} has no obj_id; training needs to know which object it means")
    for text in record.obj_ids:
        if not (text.isascii() and text.isdigit() and 0 < int(text) < 256):
            raise InputError(f"{_name(record)}: obj_id {text!r} is no number from 1 to 255, as masks hold")
    return [int(text) for text in record.obj_ids]


class PaletteMasks:
    """`<folder>/<video>/<frame>.png`, pixels are object ids (Ref-YouTube-VOS, Ref-DAVIS17)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: set[tuple[str, int]] = set()  # objects known to occur in their video
        self._latest: tuple[str, dict[int, NDArray[np.uint8]]] = ("", {})  # shared by a sample's expressions

    def check(self, records: Sequence[Record]) -> None:
        """Every expression names objects by numbers from 1, and every video has a folder."""
        for record in records:
            object_numbers(record)
        for video in dict.fromkeys(record.video for record in records):
            if not (self.folder / video).is_dir():
                raise InputError(f"{self.folder / video}: folder missing; training needs the masks of this video")

    def masks(self, record: Record, indices: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """See `MaskSource`; an object that no frame of the video shows is an error."""
        ids = object_numbers(record)
        out = np.zeros((len(ids), len(indices), *size), np.bool_)
        if self._latest[0] != record.video:
            self._latest = record.video, {}
        known = self._latest[1]
        self._latest = record.video, {i: known[i] if i in known else self._labels(record, i) for i in indices}
        for position, index in enumerate(indices):
            labels = self._latest[1][index]
            if labels.shape != size:
                raise _other_size(record, index, str(self._path(record, index)), labels.shape, size)
            out[:, position] = labels == np.array(ids)[:, None, None]
        for number, shown in zip(ids, out, strict=True):
            if shown.any():
                self._seen.add((record.video, number))
            elif (record.video, number) not in self._seen:
                self._find(record, number)
        return out

    def _path(self, record: Record, index: int) -> Path:
        return self.folder / record.video / f"{record.frames[index]}.png"

    def _labels(self, record: Record, index: int) -> NDArray[np.uint8]:
        try:
            return png.read_labels(self._path(record, index))
        except InputError as error:
            raise InputError(f"{record.dataset}, video {record.video}: {error}") from None

    def _find(self, record: Record, number: int) -> None:
        """Look for an object in the whole video, once."""
        for index in range(len(record)):
            if (self._labels(record, index) == number).any():
                self._seen.add((record.video, number))
                return
        raise InputError(f"{_name(record)}: obj_id {number} is in no mask of {self.folder / record.video}")


def open_masks(dataset: str, data_dir: Path, split: str) -> MaskSource:
    """The masks of a split.

    Raises:
        InputError: there are none.
    """
    layout = find_layout(dataset)
    path = data_dir / layout.masks.format(split=split)
    if layout.listed:
        raise InputError(f"data set {dataset} has no masks to train on")
    if not path.exists():
        raise InputError(f"data set {dataset}, split {split!r}: {path} is missing; training needs masks")
    if path.suffix == ".json":
        return RleMasks(path, layout.may_be_empty)
    return PaletteMasks(path)


def _name(record: Record) -> str:
    return f"{record.dataset}, video {record.video}, expression {record.exp_id}"


def _other_size(
    record: Record, index: int, what: str, found: tuple[int, ...], size: tuple[int, int]
) -> InputError:
    return InputError(
        f"{record.dataset}, video {record.video}, frame {record.frames[index]}: {what} has {found[1]}x{found[0]} "
        f"pixels, the frame {size[1]}x{size[0]}"
    )
