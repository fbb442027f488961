"""A mask held as 64-bit words, with its boundary map computed once and kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glus.errors import InputError
from glus.evaluation import kernels

Words = NDArray[np.uint64]

MAX_PIXELS = 1 << 28  # a damaged or hostile header must not ask for all memory

_FAULTS = {
    kernels.BAD_CHARACTER: "holds a character that no run-length code has",
    kernels.UNFINISHED: "ends in the middle of a number",
    kernels.NEGATIVE_RUN: "holds a negative run",
    kernels.TOO_LONG: "describes more pixels than its size has",
    kernels.TOO_SHORT: "describes fewer pixels than its size has",
}


class BitMask:
    """A binary mask of `height` x `width` pixels as `words: uint64[height, ceil(width / 64)]`.

    Treat it as immutable: the boundary map is cached. The bit order is that of `glus.evaluation.kernels`.
    """

    __slots__ = ("_boundary", "height", "width", "words")

    def __init__(self, words: Words, width: int) -> None:
        self.words = words
        self.height = words.shape[0]
        self.width = width
        self._boundary: tuple[Words, int] | None = None

    @classmethod
    def zeros(cls, height: int, width: int) -> BitMask:
        """A mask without foreground."""
        return cls(np.zeros((height, (width + 63) // 64), np.uint64), width)

    @classmethod
    def pack(cls, mask: NDArray[Any]) -> BitMask:
        """From an array [height, width] of any type; every value that is not zero is foreground."""
        if mask.ndim != 2 or 0 in mask.shape:
            raise ValueError(f"a mask has shape [height, width], both at least 1; found {mask.shape}")
        height, width = mask.shape
        if mask.dtype != np.uint8:
            mask = mask != 0
        data = np.ascontiguousarray(mask).view(np.uint8).reshape(-1)
        words = np.empty((height, (width + 63) // 64), np.uint64)
        kernels.pack_bytes(data, 0, width, width, words)
        return cls(words, width)

    @classmethod
    def from_rle(cls, rle: Any, where: str = "RLE") -> BitMask:
        """From a COCO run-length code `{"size": [height, width], "counts": text, bytes or list of int}`.

        Raises:
            InputError: a field is missing or of the wrong type, or the counts do not describe exactly
                height x width pixels; the message starts with `where`.
        """
        size = rle.get("size") if isinstance(rle, Mapping) else None
        if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
            raise InputError(f"{where}: a mask must be a COCO RLE with size [height, width] and counts")
        height, width = size
        if height * width > MAX_PIXELS:
            raise InputError(f"{where}: corrupt RLE, a mask of {height}x{width} pixels is not usable")
        runs = _parse_counts(rle.get("counts"), where)
        mask = cls.zeros(height, width)
        status = kernels.fill_runs(runs, height, width, mask.words)
        if status < 0:
            raise InputError(f"{where}: corrupt RLE, {_FAULTS[status]} ({height}x{width})")
        return mask

    @classmethod
    def split(cls, labels: NDArray[np.uint8], ids: Sequence[int]) -> list[BitMask]:
        """One mask per entry of `ids` (distinct, 0..255) from a label map uint8 [height, width], in one pass."""
        slots = np.full(256, -1, np.int64)
        slots[list(ids)] = np.arange(len(ids))
        height, width = labels.shape
        words = np.zeros((len(ids), height, (width + 63) // 64), np.uint64)
        kernels.split_labels(labels, slots, words)
        return [cls(plane, width) for plane in words]

    def unpack(self) -> NDArray[np.bool_]:
        """As a bool array [height, width]."""
        packed = self.words.astype(">u8").view(np.uint8)
        return np.unpackbits(packed, axis=1, count=self.width).view(np.bool_)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)"""
        return self.height, self.width

    def area(self) -> int:
        """Number of foreground pixels."""
        return int(kernels.area(self.words))

    def boundary(self) -> tuple[Words, int]:
        """The padded boundary map and its number of pixels (evaluation.md 1.2)."""
        if self._boundary is None:
            out = np.zeros((self.height, self.words.shape[1] + 2), np.uint64)
            self._boundary = out, int(kernels.boundary_map(self.words, self.width, out))
        return self._boundary

    def __or__(self, other: BitMask) -> BitMask:
        self.check_shape(other)
        return BitMask(self.words | other.words, self.width)

    def __and__(self, other: BitMask) -> BitMask:
        self.check_shape(other)
        return BitMask(self.words & other.words, self.width)

    def without(self, other: BitMask) -> BitMask:
        """The pixels of this mask that are not in `other` (removing void pixels, for instance)."""
        self.check_shape(other)
        return BitMask(self.words & ~other.words, self.width)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BitMask)
            and self.shape == other.shape
            and bool(np.array_equal(self.words, other.words))
        )

    __hash__ = None  # type: ignore[assignment]

    def check_shape(self, other: BitMask) -> None:
        """Raise ValueError when the sizes differ; nothing is ever resized."""
        if self.shape != other.shape:
            raise ValueError(
                f"masks of different size: {self.height}x{self.width} and {other.height}x{other.width}"
            )


def _parse_counts(counts: Any, where: str) -> NDArray[np.int64]:
    """The runs of a COCO code as integers; InputError when `counts` is of another kind or cannot be parsed."""
    if isinstance(counts, list) and all(type(n) is int and 0 <= n < 2**62 for n in counts):
        return np.array(counts, np.int64)
    if isinstance(counts, str) and counts.isascii():
        counts = counts.encode("ascii")
    if not isinstance(counts, bytes):
        raise InputError(f"{where}: corrupt RLE, counts must be text (or a list of run lengths)")
    runs = np.empty(len(counts), np.int64)
    n = kernels.parse_counts(np.frombuffer(counts, np.uint8), runs)
    if n < 0:
        raise InputError(f"{where}: corrupt RLE, it {_FAULTS[n]}")
    return runs[:n]


@lru_cache(maxsize=256)
def disk(radius: int) -> NDArray[np.int64]:
    """Half-widths of the disk `dy^2 + dx^2 <= radius^2` in the rows at distance 0..radius."""
    return np.array([math.isqrt(radius * radius - d * d) for d in range(radius + 1)], np.int64)
