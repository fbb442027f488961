"""Where the masks of one expression or annotation come from: run-length codes or PNG folders, frame by frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glus.errors import InputError
from glus.evaluation import png
from glus.evaluation.bitmask import MAX_PIXELS, BitMask
from glus.evaluation.labels import frame_names, listing


@dataclass(frozen=True)
class RleTrack:
    """One COCO run-length code or null per frame, in the order of the frame list of the JSON file.

    Attributes:
        where: file and key, for messages.
    """

    entries: Sequence[Any]
    where: str

    def fault(self, frames: Sequence[str]) -> str | None:
        """What makes the track unusable as a whole for these frames."""
        if len(self.entries) != len(frames):
            return f"{self.where}: {len(self.entries)} masks for {len(frames)} frames"
        return None

    def missing(self, frames: Sequence[str]) -> list[str]:
        """Names of the frames without an entry."""
        return [name for name, entry in zip(frames, self.entries, strict=True) if entry is None]

    def extra(self, frames: Sequence[str]) -> list[str]:
        """Names of masks that belong to none of `frames`: none here, see `fault`."""
        return []

    def sizes(self, frames: Sequence[str]) -> Counter[tuple[int, int]]:
        """How often which (height, width) is stated; unchecked otherwise."""
        stated = [entry.get("size") for entry in self.entries if isinstance(entry, dict)]
        pairs = [size for size in stated if isinstance(size, list) and len(size) == 2]
        return Counter(
            (h, w) for h, w in pairs if type(h) is type(w) is int and min(h, w) > 0 and h * w <= MAX_PIXELS
        )

    def mask(self, index: int, name: str) -> BitMask | None:
        """The mask of frame `index`; None when it is empty. Raises InputError when it is corrupt."""
        entry = self.entries[index]
        return None if entry is None else BitMask.from_rle(entry, f"{self.where}, frame {name}")

    def gray(self, index: int, name: str) -> NDArray[np.uint8]:
        """The mask as values 0 and 1."""
        mask = self.mask(index, name)
        if mask is None:
            raise InputError(f"{self.where}, frame {name}: no mask")
        return mask.unpack().view(np.uint8)


@dataclass(frozen=True)
class PngTrack:
    """Masks in `<folder>/<frame>.png`.

    Attributes:
        opencv: read as the original tools do (`png.read_mask_opencv`) instead of by the rules of `png`.
        label: read label maps and take the pixels of this id.
    """

    folder: Path
    opencv: bool = False
    label: int | None = None

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.png"

    def names(self) -> list[str]:
        """Sorted names of the frames that have a file; none where there is no folder."""
        return frame_names(self.folder)

    def fault(self, frames: Sequence[str]) -> str | None:
        return None if self.folder.is_dir() else f"{self.folder}: no such folder ({len(frames)} frames)"

    def missing(self, frames: Sequence[str]) -> list[str]:
        present = set(self.names())
        return [name for name in frames if name not in present]

    def extra(self, frames: Sequence[str]) -> list[str]:
        return sorted(set(self.names()) - set(frames))

    def sizes(self, frames: Sequence[str]) -> Counter[tuple[int, int]]:
        """The size of the first file that can be read; the others are not looked at."""
        for index, name in enumerate(frames):
            try:
                mask = self.mask(index, name)
            except InputError:
                continue  # reported when its frame is scored
            return Counter() if mask is None else Counter([mask.shape])
        return Counter()

    def mask(self, index: int, name: str) -> BitMask | None:
        """The mask of a frame. Raises InputError when it is missing or damaged."""
        if self.label is not None:
            return BitMask.split(png.read_labels(self._path(name)), [self.label])[0]
        return (png.read_mask_opencv if self.opencv else png.read_mask)(self._path(name))

    def gray(self, index: int, name: str) -> NDArray[np.uint8]:
        """The gray values that the original tools see."""
        return png.read_gray_opencv(self._path(name))

    def hint(self, name: str) -> str:
        """What lies there instead of a missing mask, for messages."""
        others = sorted(other for other in listing(self.folder) if other.startswith(f"{name}."))
        return f" (there is {others[0]}; masks must be .png)" if others else ""


Track = RleTrack | PngTrack
