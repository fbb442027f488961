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

from glus.data.records import Record
from glus.errors import InputError
from glus.evaluation import png


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


class PaletteMasks:
    """`<folder>/<video>/<frame>.png`, pixels are object ids (Ref-YouTube-VOS, Ref-DAVIS17)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: set[tuple[str, int]] = set()  # objects known to occur in their video
        self._latest: tuple[str, dict[int, NDArray[np.uint8]]] = ("", {})  # shared by a sample's expressions

    def check(self, records: Sequence[Record]) -> None:
        """Every expression names objects by numbers from 1, and every video has a folder."""
        for record in records:
            self._ids(record)
        for video in dict.fromkeys(record.video for record in records):
            if not (self.folder / video).is_dir():
                raise InputError(f"{self.folder / video}: folder missing; training needs the masks of this video")

    def _ids(self, record: Record) -> list[int]:
        where = f"{record.dataset}, video {record.video}, expression {record.exp_id}"
        if not record.obj_ids:
            raise InputError(f"{where} has no obj_id; training needs to know which object it means")
        for text in record.obj_ids:
            if not (text.isascii() and text.isdigit() and 0 < int(text) < 256):
                raise InputError(f"{where}: obj_id {text!r} is no number from 1 to 255, so no mask can show it")
        return [int(text) for text in record.obj_ids]

    def masks(self, record: Record, indices: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """See `MaskSource`; an object that no frame of the video shows is an error."""
        ids = self._ids(record)
        out = np.zeros((len(ids), len(indices), *size), np.bool_)
        if self._latest[0] != record.video:
            self._latest = record.video, {}
        known = self._latest[1]
        self._latest = record.video, {i: known[i] if i in known else self._labels(record, i) for i in indices}
        for position, index in enumerate(indices):
            labels = self._latest[1][index]
            if labels.shape != size:
                raise _other_size(record, index, self._path(record, index), labels.shape, size)
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
        raise InputError(
            f"{record.dataset}, video {record.video}, expression {record.exp_id}: obj_id {number} is in "
            f"no mask of {self.folder / record.video}"
        )


def _other_size(
    record: Record, index: int, file: Path, found: tuple[int, ...], size: tuple[int, int]
) -> InputError:
    return InputError(
        f"{record.dataset}, video {record.video}, frame {record.frames[index]}: {file} has a mask of "
        f"{found[1]}x{found[0]} pixels, the frame has {size[1]}x{size[0]}"
    )
