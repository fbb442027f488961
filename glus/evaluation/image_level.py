"""Scores over independent masks: gIoU and cIoU of the validation loop, and precision@K.

Source: reference evaluation.md 1.6 (LISA / GLUS validation loop; ReferFormer A2D / JHMDB). The originals
compute in float32; here everything is float64, which agrees to 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def _counts(pred: Mask, gt: Mask, keep: Mask | None = None) -> tuple[int, int]:
    """Intersection and union in pixels, of the pixels in `keep`."""
    if pred.shape != gt.shape or (keep is not None and keep.shape != gt.shape):
        raise ValueError(f"mask shapes differ: prediction {pred.shape}, ground truth {gt.shape}")
    both, either = pred & gt, pred | gt
    if keep is not None:
        both, either = both & keep, either & keep
    return int(np.count_nonzero(both)), int(np.count_nonzero(either))


@dataclass
class MaskIoU:
    """Running sums behind gIoU and cIoU. Plain numbers, so that processes can add them up.

    Attributes:
        intersection, union: foreground pixels over all masks.
        accuracy: sum over masks of the mask's IoU (1 when the union is empty).
        count: masks seen.
    """

    intersection: float = 0.0
    union: float = 0.0
    accuracy: float = 0.0
    count: float = 0.0

    def add(self, pred: Mask, gt: Mask, ignore: Mask | None = None) -> None:
        """Count one mask.

        Args:
            pred, gt: bool [H, W].
            ignore: bool [H, W], pixels left out of both (label 255 of the ground truth).

        Raises:
            ValueError: the shapes differ.
        """
        inter, union = _counts(pred, gt, None if ignore is None else ~ignore)
        self.intersection += inter
        self.union += union
        self.accuracy += inter / (union + 1e-5) + (union == 0)
        self.count += 1

    def merge(self, other: MaskIoU) -> None:
        """Add the sums of another process."""
        self.intersection += other.intersection
        self.union += other.union
        self.accuracy += other.accuracy
        self.count += other.count

    @property
    def ciou(self) -> float:
        """Sum of intersections over sum of unions, 0..1."""
        return self.intersection / (self.union + 1e-10)

    def giou(self, after_reduction: bool = False) -> float:
        """Mean IoU over masks, 0..1; 0 when no mask was seen.

        With `after_reduction` the mean divides by `count + 1e-5`, as the original does once it has summed
        over processes; published gIoU values carry that offset.
        """
        if self.count == 0:
            return 0.0
        return self.accuracy / (self.count + (1e-5 if after_reduction else 0.0))


def precision_at_k(
    pairs: Sequence[tuple[Mask, Mask]], thresholds: Sequence[float] = PRECISION_THRESHOLDS
) -> dict[str, float | list[float]]:
    """Precision@K (share of samples with IoU strictly above K), overall IoU and mean IoU.

    Args:
        pairs: one (prediction, ground truth) pair of bool [H, W] per sample; the prediction is the
            highest-scoring one, see `best_scored`.

    Raises:
        ValueError: no samples, or shapes that differ.
    """
    if not pairs:
        raise ValueError("precision@K needs at least one sample")
    counts = np.array([_counts(pred, gt) for pred, gt in pairs], dtype=np.float64)
    inter, union = counts[:, 0], counts[:, 1]
    ious = (inter + 1e-6) / (union + 1e-6)
    return {
        "precision": [float(np.mean(ious > threshold)) for threshold in thresholds],
        "overall_iou": float(inter.sum() / union.sum()) if union.sum() else 1.0,
        "mean_iou": float(ious.mean()),
    }


def best_scored(predictions: Sequence[Mask], scores: Sequence[float]) -> Mask:
    """The prediction with the highest score; the first of equals."""
    return predictions[int(np.argmax(scores))]
