"""Masks in and out: COCO run-length codes and 1-bit PNG files.

A mask is a bool array [height, width]; behind these functions is its packed form, `glus.evaluation.bitmask`.
"""

from __future__ import annotations

import struct
import zlib
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from glus.errors import InputError
from glus.evaluation import png
from glus.evaluation.bitmask import BitMask
from glus.io import write_bytes

Mask = NDArray[np.bool_]


def decode_rle(rle: Any, height: int, width: int, where: str) -> Mask:
    """Decode a COCO run-length code of a `height` x `width` frame into a bool array [height, width].

    `None` is an empty mask, as in the mask dictionaries of MeViS.

    Raises:
        InputError: not a run-length code, corrupt, or of another size; the message starts with `where`.
    """
    if rle is None:
        return np.zeros((height, width), np.bool_)
    mask = BitMask.from_rle(rle, where)
    if mask.shape != (height, width):
        raise InputError(f"{where}: mask of {mask.height}x{mask.width} for a frame of {height}x{width} pixels")
    return mask.unpack()


def encode_rle(mask: NDArray[Any]) -> dict[str, Any]:
    """Encode a mask [height, width] (not zero = foreground) as `{"size": [height, width], "counts": text}`."""
    rle = coco.encode(np.asfortranarray(mask != 0, np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def bounding_box(mask: NDArray[Any]) -> tuple[int, int, int, int] | None:
    """The smallest box around a mask [height, width]: x, y, width, height in pixels; None for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def merge_instances(masks: NDArray[np.bool_], overlap: Literal["union", "sum"] = "union") -> NDArray[np.uint8]:
    """The training target of an expression from the masks of its objects (reference glus.md 4.3, D16).

    Args:
        masks: (objects, ..., H, W) bool.
        overlap: `LossRules.overlap`; "sum" counts the objects at a pixel.

    Returns:
        (..., H, W) uint8; all zero for no objects.
    """
    if overlap == "sum":
        return np.add.reduce(masks, axis=0, dtype=np.uint8)
    return np.any(masks, axis=0).astype(np.uint8)


def mask_png(mask: NDArray[Any], depth: int = 1) -> bytes:
    """A gray PNG of a mask [height, width], of 1 or 8 bits: not zero becomes 1 or 255.

    Readers of 8-bit gray see 255 in both; 1 bit is smaller and faster to read.
    """
    height, width = mask.shape
    mask = mask != 0
    samples = np.packbits(mask, axis=1) if depth == 1 else mask * np.uint8(255)
    rows = np.zeros((height, 1 + samples.shape[1]), np.uint8)  # first byte: row filter 0, none
    rows[:, 1:] = samples
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
        for kind, body in chunks
    )


def write_mask_png(path: str | PathLike[str], mask: NDArray[Any]) -> None:
    """Write a mask [height, width] (not zero = foreground) as a 1-bit PNG, atomically."""
    write_bytes(path, mask_png(mask))


def read_mask(path: str | PathLike[str]) -> Mask:
    """Read a mask PNG of any kind as a bool array; the rules and the InputErrors of `glus.evaluation.png`."""
    return png.read_mask(path).unpack()
