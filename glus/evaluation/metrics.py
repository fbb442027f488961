"""Frame metrics: J and F (evaluation.md 1.1-1.3), accuracy A and robustness R (1.4).

The counts are those of the definition and the divisions run in its order, so results are bit-identical to the
original tools.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glus.evaluation import kernels
from glus.evaluation.bitmask import BitMask, disk

BOUND_TH = 0.008


def boundary_radius(height: int, width: int, bound_th: float = BOUND_TH) -> int:
    """Tolerance of F in pixels: `ceil(bound_th * diagonal)`, or `bound_th` itself when it is 1 or more."""
    if bound_th >= 1:
        if bound_th != int(bound_th):
            raise ValueError(f"bound_th of 1 or more is a radius in whole pixels, found {bound_th}")
        return int(bound_th)
    if bound_th <= 0:
        raise ValueError(f"bound_th must be positive, found {bound_th}")
    return math.ceil(bound_th * math.sqrt(height * height + width * width))


def jaccard(gt: BitMask, pred: BitMask, void: BitMask | None = None) -> float:
    """J of one frame: intersection over union without the void pixels; 1 when the union is empty."""
    if void is not None:
        gt, pred = gt.without(void), pred.without(void)
    gt.check_shape(pred)
    both, either = kernels.overlap(gt.words, pred.words)
    return 1.0 if either == 0 else both / either


def boundary_counts(gt: BitMask, pred: BitMask, radius: int) -> tuple[int, int, int, int]:
    """Boundary pixels of gt and of pred, then those of each within `radius` of the other's boundary."""
    gt.check_shape(pred)
    (b_gt, n_gt), (b_pred, n_pred) = gt.boundary(), pred.boundary()
    if n_gt == 0 or n_pred == 0:
        return n_gt, n_pred, 0, 0
    count = kernels.count_matches if radius <= 31 else kernels.count_matches_wide
    half = disk(radius)
    return n_gt, n_pred, count(b_gt, b_pred, radius, half), count(b_pred, b_gt, radius, half)


def boundary_measure(gt: BitMask, pred: BitMask, void: BitMask | None = None, bound_th: float = BOUND_TH) -> float:
    """F of one frame. One boundary map empty: 0; both empty: 1."""
    if void is not None:
        gt, pred = gt.without(void), pred.without(void)
    n_gt, n_pred, gt_match, pred_match = boundary_counts(gt, pred, boundary_radius(gt.height, gt.width, bound_th))
    if n_gt == 0 and n_pred == 0:
        precision = recall = 1.0
    elif n_pred == 0:
        precision, recall = 1.0, 0.0
    elif n_gt == 0:
        precision, recall = 0.0, 1.0
    else:
        precision, recall = pred_match / n_pred, gt_match / n_gt
    total = precision + recall
    return 0.0 if total == 0 else 2 * precision * recall / total


def frame_scores(gt: BitMask, pred: BitMask, void: BitMask | None = None) -> tuple[float, float]:
    """(J, F) of one frame. For many pairs with the same void, take `without(void)` of each mask once instead."""
    if void is not None:
        gt, pred = gt.without(void), pred.without(void)
    return jaccard(gt, pred), boundary_measure(gt, pred)


def db_eval_iou(
    annotation: NDArray[Any], segmentation: NDArray[Any], void_pixels: NDArray[Any] | None = None
) -> float | NDArray[np.float64]:
    """J on arrays (not zero = foreground): [height, width] gives a float, [frames, height, width] an array."""
    return _over_frames(jaccard, annotation, segmentation, void_pixels)


def db_eval_boundary(
    annotation: NDArray[Any],
    segmentation: NDArray[Any],
    void_pixels: NDArray[Any] | None = None,
    bound_th: float = BOUND_TH,
) -> float | NDArray[np.float64]:
    """F on arrays, shapes as in `db_eval_iou`."""

    def measure(gt: BitMask, pred: BitMask, void: BitMask | None) -> float:
        return boundary_measure(gt, pred, void, bound_th)

    return _over_frames(measure, annotation, segmentation, void_pixels)


def _over_frames(
    measure: Any, gt: NDArray[Any], pred: NDArray[Any], void: NDArray[Any] | None
) -> float | NDArray[np.float64]:
    if gt.shape != pred.shape or (void is not None and void.shape != gt.shape):
        raise ValueError(f"masks of different shape: {gt.shape}, {pred.shape}")
    if gt.ndim == 2:
        return float(measure(BitMask.pack(gt), BitMask.pack(pred), None if void is None else BitMask.pack(void)))
    voids = [None] * len(gt) if void is None else [BitMask.pack(v) for v in void]
    pairs = zip(gt, pred, voids, strict=True)
    return np.array([measure(BitMask.pack(g), BitMask.pack(p), v) for g, p, v in pairs], np.float64)


def accuracy_robustness(gt: BitMask, pred: BitMask, foreground: BitMask) -> tuple[float, float]:
    """A and R of one frame on binary masks (ReVOS, evaluation.md 1.4).

    A is the fraction of pixels that agree; R is 1 minus the false-positive area over the area of everything
    annotated in the frame (`foreground`), not below 0.
    """
    gt.check_shape(pred)
    gt.check_shape(foreground)
    pixels = gt.height * gt.width
    both, either = kernels.overlap(gt.words, pred.words)
    false_positives = either - gt.area()
    robustness = max(1 - false_positives / (foreground.area() + 1e-6), 0.0)
    return (pixels - (either - both)) / pixels, robustness


def accuracy_robustness_of_values(
    gt_count: NDArray[np.uint8], pred_value: NDArray[np.uint8], foreground: BitMask
) -> tuple[float, float]:
    """A and R as the published tools compute them, on pixel values.

    `gt_count` is the number of annotated instances covering each pixel, `pred_value` the gray value of the
    prediction; products are taken in uint8 and wrap, which weights a false positive of value 255 by 255.
    """
    wrapped = (np.uint8(1) - gt_count) * pred_value
    false_positives = int(wrapped.sum(dtype=np.int64))
    robustness = max(1 - false_positives / (foreground.area() + 1e-6), 0.0)
    return int(np.count_nonzero(gt_count == pred_value)) / gt_count.size, robustness
