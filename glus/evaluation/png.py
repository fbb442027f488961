"""Read mask PNGs, fast where it matters.

What counts as foreground (evaluation.md 2.2, with the readings of its section 6):

- gray of any depth and palette: the stored sample (palette: the index) is not zero. A 16-bit value of 255 is
  foreground here; the original tools, reading 8 bits through OpenCV, lose it.
- RGB: any channel is not zero.
- An alpha channel must be opaque everywhere and is then ignored. Otherwise it is unclear whether colour or alpha
  holds the mask (the original tools take the colour, so a white image becomes a full frame): an InputError.

Every PNG that is not interlaced is decoded here, inflated by ISA-L; interlaced ones go through Pillow, by the same
rule. `read_mask_opencv` reads as the original tools do. What is not a whole PNG is an InputError.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

from glus.errors import InputError
from glus.evaluation import kernels
from glus.evaluation.bitmask import MAX_PIXELS, BitMask
from glus.evaluation.png_filters import unfilter

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_CHANNELS = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGBA: 4}
_DEPTHS = {_GRAY: (1, 2, 4, 8, 16), _PALETTE: (1, 2, 4, 8), _RGB: (8, 16), _GRAY_ALPHA: (8, 16), _RGBA: (8, 16)}


class _Image(NamedTuple):
    """A PNG's header and its compressed image data."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool
    data: bytes

    @property
    def stride(self) -> int:
        """Bytes of one row with its filter byte."""
        return 1 + (self.width * self.depth * _CHANNELS[self.colour] + 7) // 8


def read_mask(path: str | PathLike[str]) -> BitMask:
    """Read a PNG as a binary mask by the rules above.

    Raises:
        InputError: missing, not a PNG, truncated, damaged, or with an alpha channel that is not opaque.
    """
    image = _load(path)
    if image.interlaced or image.colour not in (_GRAY, _PALETTE) or image.depth not in (1, 8):
        return BitMask.pack(_foreground(path, _samples(path, image), image.colour))
    rows = _rows(path, image)
    words = np.empty((image.height, (image.width + 63) // 64), np.uint64)
    pack = kernels.pack_bits if image.depth == 1 else kernels.pack_bytes
    pack(rows, 1, image.stride, image.width, words)
    return BitMask(words, image.width)


def read_labels(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read a label map, uint8 [height, width]: the index of a palette PNG or the value of a gray one.

    Raises:
        InputError: as for `read_mask`, or the PNG is neither palette nor gray of at most 8 bits.
    """
    image = _load(path)
    if image.colour not in (_GRAY, _PALETTE) or image.depth == 16:
        raise InputError(f"{path}: a label map must be a palette or 8-bit gray PNG of object ids")
    return _samples(path, image).astype(np.uint8)


def read_mask_opencv(path: str | PathLike[str]) -> BitMask:
    """Read a mask as the original tools do: OpenCV's 8-bit gray conversion, not zero = foreground."""
    return BitMask.pack(read_gray_opencv(path))


def read_gray_opencv(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """The gray values uint8 [height, width] that the original tools see; InputError when OpenCV reads nothing."""
    gray = cv2.imread(fspath(path), cv2.IMREAD_GRAYSCALE)
    if gray is None:
        state = "cannot be read as an image" if Path(path).is_file() else "missing"
        raise InputError(f"{path}: {state}")
    return np.asarray(gray)


def read_gray(content: bytes, name: str) -> tuple[NDArray[np.uint8], int]:
    """The samples, uint8 [height, width], and the bit depth of the gray PNG file `content`.

    Raises:
        InputError: not a whole PNG, or not single-channel gray of at most 8 bits; the message begins with `name`.
    """
    image = _parse(name, content)
    if image.colour != _GRAY or image.depth == 16:
        raise InputError(f"{name}: not a single-channel gray PNG of at most 8 bits")
    if image.interlaced:
        raise InputError(f"{name}: interlaced PNG; write it again without")
    return _samples(name, image).astype(np.uint8), image.depth


def _load(path: str | PathLike[str]) -> _Image:
    """Read a PNG file and split it into header and image data."""
    try:
        with open(path, "rb") as handle:
            content = handle.read()
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return _parse(path, content)


def _parse(path: str | PathLike[str], content: bytes) -> _Image:
    """Split a PNG into header and image data, checking signature, checksums and completeness."""
    if not content.startswith(_SIGNATURE):
        raise InputError(f"{path}: not a PNG file")
    header: tuple[int, ...] | None = None
    parts = []
    at = len(_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        if at + 12 > len(content):
            raise InputError(f"{path}: truncated PNG; write it again")
        (length,) = struct.unpack_from(">I", content, at)
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        at += 12 + length
        if at > len(content):
            raise InputError(f"{path}: truncated PNG; write it again")
        if (
            kind in (b"IHDR", b"IDAT")
            and zlib.crc32(body, zlib.crc32(kind)) != struct.unpack_from(">I", content, at - 4)[0]
        ):
            raise InputError(f"{path}: damaged PNG (wrong checksum); write it again")
        if kind == b"IHDR" and length == 13:
            header = struct.unpack(">IIBBBBB", body)
        elif kind == b"IDAT":
            parts.append(body)
    if header is None:
        raise InputError(f"{path}: damaged PNG (no header); write it again")
    width, height, depth, colour, method, filtering, interlace = header
    if depth not in _DEPTHS.get(colour, ()) or method or filtering or interlace > 1:
        raise InputError(f"{path}: damaged PNG (impossible header); write it again")
    if not 0 < width * height <= MAX_PIXELS:
        raise InputError(f"{path}: a PNG of {width}x{height} pixels is no usable mask")
    return _Image(width, height, depth, colour, interlace == 1, b"".join(parts))


def _rows(path: str | PathLike[str], image: _Image) -> NDArray[np.uint8]:
    """The unfiltered rows as one vector, followed by 8 bytes of padding."""
    size = image.height * image.stride
    rows = np.empty(size + 8, np.uint8)
    rows[:size] = np.frombuffer(_inflated(path, image.data, size), np.uint8)
    step = max(1, image.depth * _CHANNELS[image.colour] // 8)
    if not unfilter(rows[:size].reshape(image.height, image.stride), step):
        raise InputError(f"{path}: damaged PNG (unknown row filter); write it again")
    return rows


def _inflated(path: str | PathLike[str], data: bytes, size: int) -> bytes:
    """The content of the zlib stream `data`, which must be `size` bytes; never makes more than one byte beyond."""
    stream = isal_zlib.decompressobj()
    try:
        content = stream.decompress(data, size + 1)
    except isal_zlib.error:  # type: ignore[misc]  # its stub declares an instance of Exception
        raise InputError(f"{path}: damaged PNG (its image data are damaged); write it again") from None
    if not stream.eof and len(content) <= size:
        raise InputError(f"{path}: damaged PNG (its image data end too early); write it again")
    if len(content) != size or stream.unused_data:
        raise InputError(f"{path}: damaged PNG (its image data do not fit its size); write it again")
    return content


def _samples(path: str | PathLike[str], image: _Image) -> NDArray[Any]:
    """The stored samples [height, width] or [height, width, channels], uint8 or uint16, in memory of their own."""
    if image.interlaced:
        return _samples_pillow(path)
    rows = _rows(path, image)[: image.height * image.stride].reshape(image.height, image.stride)[:, 1:]
    channels = _CHANNELS[image.colour]
    if image.depth == 16:
        samples: NDArray[Any] = np.ascontiguousarray(rows).view(">u2").astype(np.uint16)
    elif image.depth == 8:
        samples = rows.copy()
    else:
        samples = _unpacking(image.depth)[rows].view(np.uint8)[:, : image.width]
    return samples if channels == 1 else samples.reshape(image.height, image.width, channels)


@lru_cache(maxsize=3)
def _unpacking(depth: int) -> NDArray[Any]:
    """Table from a byte to its samples of `depth` (1, 2 or 4) bits, one byte each, held in one wide integer."""
    shifts = np.arange(8 - depth, -1, -depth)
    samples = (np.arange(256)[:, None] >> shifts) & ((1 << depth) - 1)
    return samples.astype(np.uint8).view(f"u{len(shifts)}")[:, 0]


def _samples_pillow(path: str | PathLike[str]) -> NDArray[Any]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: damaged PNG ({error}); write it again") from None


def _foreground(path: str | PathLike[str], samples: NDArray[Any], colour: int) -> NDArray[np.bool_]:
    """The rule of the module text for samples of any depth."""
    if samples.ndim == 2:
        return np.asarray(samples != 0)
    if colour in (_GRAY_ALPHA, _RGBA):
        opaque = 65535 if samples.dtype == np.uint16 else 255
        if (samples[:, :, -1] != opaque).any():
            raise InputError(
                f"{path}: the alpha channel is not opaque, so it is unclear what the mask is; "
                "write single-channel PNGs (0 background, 255 object)"
            )
        samples = samples[:, :, :-1]
    return np.asarray((samples != 0).any(axis=2))
