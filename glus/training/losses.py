"""Cross entropy on [SEG], mask losses, and their total (reference glus.md, sections 5.1 to 5.3 and 5.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from glus.training.objective import LossWeights

DICE_SCALE = 1000.0
DICE_EPSILON = 1e-6
COUNT_EPSILON = 1e-8


@dataclass(frozen=True)
class StepLosses:
    """Scalars of one micro-batch, weights applied; tensors on the model's device, `total` with the graph.

    Attributes:
        total: the sum of the others.
        ce: cross entropy on [SEG].
        bce: binary cross entropy of the masks.
        dice: Dice loss of the masks.
        contrastive: object contrastive loss; None where the batch has none.
    """

    total: torch.Tensor
    ce: torch.Tensor
    bce: torch.Tensor
    dice: torch.Tensor
    contrastive: torch.Tensor | None

    @property
    def mask(self) -> torch.Tensor:
        """`bce + dice`."""
        return self.bce + self.dice

    def detached(self) -> dict[str, torch.Tensor]:
        """The terms under the original's log names, without graph; still on the device (no synchronisation)."""
        terms = {
            "loss": self.total,
            "ce_loss": self.ce,
            "mask_bce_loss": self.bce,
            "mask_dice_loss": self.dice,
            "mask_loss": self.mask,
            "contrastive_loss": self.contrastive,
        }
        return {name: term.detach() for name, term in terms.items() if term is not None}


def seg_cross_entropy(logits: torch.Tensor, seg_id: int, fp32: bool = True) -> torch.Tensor:
    """Mean cross entropy over the whole vocabulary of the positions that predict [SEG] (5.1).

    Args:
        logits: (K, vocabulary), one row per [SEG] of the batch.
        fp32: up-cast before the soft-max.
    """
    labels = torch.full(logits.shape[:1], seg_id, device=logits.device)
    return F.cross_entropy(logits.float() if fp32 else logits, labels)


def mask_bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross entropy of each pair's pixels: (P, H, W), (P, H, W) -> (P,), fp32 (5.2)."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return losses.flatten(1).mean(dim=1)


def mask_dice(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Dice loss of each pair: (P, H, W), (P, H, W) -> (P,), fp32, 0..1 for binary targets (5.3).

    An empty target costs nearly 1 unless the prediction is all but empty too.
    """
    shares = logits.float().sigmoid().flatten(1)
    wanted = targets.float().flatten(1)
    common = (shares * wanted).sum(dim=1) / DICE_SCALE
    size = (shares.sum(dim=1) + wanted.sum(dim=1)) / DICE_SCALE
    return 1 - (2 * common + DICE_EPSILON) / (size + DICE_EPSILON)


def mean_of_pairs(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over all (expression, frame) pairs of the micro-batch, given as any number of (P,) tensors."""
    pairs = torch.cat(list(losses))
    return pairs.sum() / (len(pairs) + COUNT_EPSILON)


def total_loss(
    ce: torch.Tensor,
    bce: torch.Tensor,
    dice: torch.Tensor,
    contrastive: torch.Tensor | None,
    weights: LossWeights,
) -> StepLosses:
    """Weigh and add the terms, each a scalar."""
    ce, bce, dice = weights.ce * ce, weights.bce * bce, weights.dice * dice
    total = ce + bce + dice
    if contrastive is not None:
        contrastive = weights.contrastive * contrastive
        total = total + contrastive
    return StepLosses(total, ce, bce, dice, contrastive)
