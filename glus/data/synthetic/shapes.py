"""Outlines and colours of the objects, and their anti-aliased rasterisation in integer arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

SUPERSAMPLING = 4
_FRACTION_BITS = 4  # polygon corners are given to OpenCV in sixteenths of a subpixel

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 136, 24),
    "yellow": (250, 215, 45),
    "green": (40, 160, 70),
    "blue": (38, 92, 214),
    "purple": (128, 58, 184),
    "pink": (248, 138, 184),
    "white": (240, 240, 238),
    "black": (34, 34, 40),
}
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "big")
SIZE_RANGE = {"small": (0.066, 0.080), "big": (0.116, 0.136)}  # radius as a fraction of the shorter side


def _regular(corners: int, radius: float, start: float = -math.pi / 2) -> np.ndarray:
    angles = start + np.arange(corners) * (2 * math.pi / corners)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    outer, inner = _regular(5, 1.22), _regular(5, 0.55, -math.pi / 2 + math.pi / 5)
    return np.stack([outer, inner], axis=1).reshape(-1, 2)


def _cross() -> np.ndarray:
    long, short = 1.05, 0.38
    corner = [(-short, -long), (short, -long), (short, -short), (long, -short), (long, short), (short, short)]
    corner += [(short, long), (-short, long), (-short, short), (-long, short), (-long, -short)]
    return np.array([*corner, (-short, -short)])


def _heart() -> np.ndarray:
    t = np.arange(48) * (2 * math.pi / 48)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 1.5], axis=1) / 15.0


# Contours around the origin for radius 1, y down; a second contour is a hole.
OUTLINES: dict[str, list[np.ndarray]] = {
    "circle": [_regular(48, 1.0)],
    "square": [_regular(4, 1.25, math.pi / 4)],
    "triangle": [_regular(3, 1.3)],
    "star": [_star()],
    "ring": [_regular(48, 1.08), _regular(48, 0.58)],
    "pentagon": [_regular(5, 1.12)],
    "cross": [_cross()],
    "heart": [_heart()],
}
SHAPES = tuple(OUTLINES)
ROUND_SHAPES = ("circle", "ring")  # a plain one shows no rotation


@dataclass(frozen=True)
class Patch:
    """One object's coverage at one frame: alpha uint8 [h, w], its top-left pixel may lie off the picture."""

    x: int
    y: int
    alpha: np.ndarray

    def clip(self, width: int, height: int, dx: int = 0, dy: int = 0) -> tuple[tuple[slice, slice], ...]:
        """(slices into the picture, slices into the patch) of their overlap, the patch moved by (dx, dy)."""
        x, y = self.x + dx, self.y + dy
        h, w = self.alpha.shape
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        x1, y1 = max(x0, x1), max(y0, y1)
        return (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))


def outline(shape: str, x: float, y: float, radius: float, angle: float) -> list[np.ndarray]:
    """The contours of a placed object in picture coordinates (pixels, float [n, 2] each)."""
    cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
    turn = np.array([[cos, sin], [-sin, cos]])
    return [contour @ turn + (x, y) for contour in OUTLINES[shape]]


def rasterise(shape: str, x: float, y: float, radius: float, angle: float) -> Patch:
    """Coverage of a placed object (centre and radius in pixels, angle in radians), padded for its shadow."""
    contours = outline(shape, x, y, radius, angle)
    pad = math.ceil(0.35 * radius) + 2
    low = np.floor(contours[0].min(axis=0)).astype(int) - pad
    high = np.ceil(contours[0].max(axis=0)).astype(int) + pad
    w, h = (int(n) for n in high - low)
    scale = SUPERSAMPLING << _FRACTION_BITS
    half = 1 << (_FRACTION_BITS - 1)
    corners = [np.rint((c - low) * scale).astype(np.int32) - half for c in contours]
    canvas = np.zeros((h * SUPERSAMPLING, w * SUPERSAMPLING), np.uint8)
    cv2.fillPoly(canvas, corners, 255, lineType=cv2.LINE_8, shift=_FRACTION_BITS)
    alpha = cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA)
    return Patch(int(low[0]), int(low[1]), np.asarray(alpha))
