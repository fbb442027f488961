"""The original tools' way of computing J, F and the MeViS evaluation, written anew from the reference text
(evaluation.md 1, 3.1, 7.1): NumPy boundary maps, dilation with a disk by OpenCV, pycocotools, PNG by OpenCV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

Array = NDArray[Any]


def region(annotation: Array, segmentation: Array, void: Array | None = None) -> Any:
    """J of one pair or of a stack."""
    annotation, segmentation = annotation.astype(bool), segmentation.astype(bool)
    void = np.zeros_like(segmentation) if void is None else void.astype(bool)
    inters = np.sum((segmentation & annotation) & np.logical_not(void), axis=(-2, -1))
    union = np.sum((segmentation | annotation) & np.logical_not(void), axis=(-2, -1))
    with np.errstate(invalid="ignore"):
        j = inters / union
    if j.ndim == 0:
        return 1 if np.isclose(union, 0) else j
    j[np.isclose(union, 0)] = 1
    return j


def disk(radius: float) -> NDArray[np.uint8]:
    """The structuring element."""
    line = np.arange(-radius, radius + 1)
    x, y = np.meshgrid(line, line)
    return np.array((x**2 + y**2) <= radius**2, dtype=np.uint8)


def boundary_map(segmentation: Array) -> Array:
    """1-pixel boundaries, offset half a pixel towards the origin."""
    seg = segmentation.astype(bool)
    east, south, both = np.zeros_like(seg), np.zeros_like(seg), np.zeros_like(seg)
    east[:, :-1] = seg[:, 1:]
    south[:-1, :] = seg[1:, :]
    both[:-1, :-1] = seg[1:, 1:]
    b = seg ^ east | seg ^ south | seg ^ both
    b[-1, :] = seg[-1, :] ^ east[-1, :]
    b[:, -1] = seg[:, -1] ^ south[:, -1]
    b[-1, -1] = 0
    return b


def boundary(annotation: Array, segmentation: Array, bound_th: float = 0.008) -> float:
    """F of one pair."""
    void = np.zeros_like(segmentation).astype(bool)
    radius = bound_th if bound_th >= 1 else np.ceil(bound_th * np.linalg.norm(segmentation.shape))
    pred = boundary_map(segmentation * np.logical_not(void))
    gt = boundary_map(annotation * np.logical_not(void))
    pred_wide = cv2.dilate(pred.astype(np.uint8), disk(radius).astype(np.uint8))
    gt_wide = cv2.dilate(gt.astype(np.uint8), disk(radius).astype(np.uint8))
    gt_match, pred_match = gt * pred_wide, pred * gt_wide
    n_pred, n_gt = np.sum(pred), np.sum(gt)
    if n_pred == 0 and n_gt > 0:
        precision, recall = 1, 0
    elif n_pred > 0 and n_gt == 0:
        precision, recall = 0, 1
    elif n_pred == 0 and n_gt == 0:
        precision, recall = 1, 1
    else:
        precision, recall = np.sum(pred_match) / float(n_pred), np.sum(gt_match) / float(n_gt)
    return 0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def ground_truth(masks: Mapping[str, Sequence[Any]], keys: Sequence[str], frame: int, shape: Any) -> Array:
    """Sum of the annotations of one frame."""
    total = np.zeros(shape, np.uint8)
    for key in keys:
        if masks[key][frame]:
            total += coco.decode(masks[key][frame])
    return total


def mevis_expression(
    folder: Path, frames: Sequence[str], masks: Mapping[str, Sequence[Any]], keys: Sequence[str]
) -> tuple[Array, Array]:
    """J and F of every frame of one expression, as a worker of eval_mevis gets them."""
    shape = cv2.imread(str(folder / f"{frames[0]}.png"), cv2.IMREAD_GRAYSCALE).shape
    gt = np.zeros((len(frames), *shape), np.uint8)
    pred = np.zeros((len(frames), *shape), np.uint8)
    for i, name in enumerate(frames):
        gt[i] = ground_truth(masks, keys, i, shape)
        pred[i] = cv2.imread(str(folder / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    return region(gt, pred), np.array([boundary(g, p) for g, p in zip(gt, pred, strict=True)])
