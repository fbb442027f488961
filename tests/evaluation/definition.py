"""J and F by their definition (reference evaluation.md 1.1-1.3), pixel by pixel and slow: what the fast core is
compared with. Shares nothing with it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def region(gt: Mask, pred: Mask, void: Mask | None = None) -> float:
    keep = np.ones_like(gt) if void is None else ~void
    union = int(((gt | pred) & keep).sum())
    return 1.0 if union == 0 else int((gt & pred & keep).sum()) / union


def boundary_map(mask: Mask) -> Mask:
    """A pixel differs from its east, south or south-east neighbour; the edge of the frame repeats."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    return (here ^ padded[:-1, 1:]) | (here ^ padded[1:, :-1]) | (here ^ padded[1:, 1:])


def dilate(mask: Mask, radius: int) -> Mask:
    height, width = mask.shape
    out = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        for dy in range(-radius, radius + 1):
            reach = math.isqrt(radius * radius - dy * dy)
            if 0 <= y + dy < height:
                out[y + dy, max(x - reach, 0) : min(x + reach, width - 1) + 1] = True
    return out


def boundary(gt: Mask, pred: Mask, void: Mask | None = None, bound_th: float = 0.008) -> float:
    if void is not None:
        gt, pred = gt & ~void, pred & ~void
    radius = int(bound_th) if bound_th >= 1 else math.ceil(bound_th * math.hypot(*gt.shape))
    b_gt, b_pred = boundary_map(gt), boundary_map(pred)
    n_gt, n_pred = int(b_gt.sum()), int(b_pred.sum())
    if n_gt == 0 or n_pred == 0:
        return 1.0 if n_gt == n_pred else 0.0
    precision = int((b_pred & dilate(b_gt, radius)).sum()) / n_pred
    recall = int((b_gt & dilate(b_pred, radius)).sum()) / n_gt
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def random_mask(rng: np.random.Generator, height: int, width: int) -> Mask:
    """Noise, blobs, empty, full, single pixels, or boxes."""
    kind = rng.integers(0, 6)
    mask = np.zeros((height, width), np.bool_)
    if kind == 0:
        return rng.random((height, width)) < rng.random()
    if kind == 1:
        mask[:] = True
    elif kind == 2:
        mask[rng.integers(height), rng.integers(width)] = True
    elif kind == 3:
        y, x = np.mgrid[0:height, 0:width]
        cy, cx, r = rng.integers(height), rng.integers(width), 1 + rng.integers(max(height, width))
        mask = (y - cy) ** 2 + (x - cx) ** 2 < r * r
    elif kind == 4:
        y0, x0 = rng.integers(height), rng.integers(width)
        mask[y0 : y0 + 1 + rng.integers(height), x0 : x0 + 1 + rng.integers(width)] = True
    return mask
