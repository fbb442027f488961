"""What a selector learns, and from which losses (reference kfs.md, 2.7 and 2.8)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from glus.text.labels import IGNORE_INDEX
from kfs.model import SelectorModel

COUNT_EPSILON = 1e-8
_TRAINED = re.compile(r"score_head\..*|language\.(lm_head|decoder\.embed_tokens)\..*|.*\.lora_[AB]\..*")


def select_trainable(model: SelectorModel) -> None:
    """Train the head, both ends of the language model and its adapters; the rest is frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_TRAINED.fullmatch(name) is not None)


@dataclass(frozen=True)
class SelectorLosses:
    """Scalars of one micro-batch, weights applied.

    Attributes:
        total: the sum of the others, with the graph.
        ce: cross entropy of all labelled tokens.
        iou: mean over samples of the mean absolute error of their scores.
        scores: (conversations,) what was predicted.
    """

    total: torch.Tensor
    ce: torch.Tensor
    iou: torch.Tensor
    scores: torch.Tensor


def selector_losses(
    model: SelectorModel,
    rows: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    image_tokens: torch.Tensor,
    targets: Sequence[torch.Tensor],
    ce_weight: float = 1.0,
    iou_weight: float = 1.0,
) -> SelectorLosses:
    """Losses of a batch of samples, each with one or more conversations.

    Args:
        rows, labels, image_tokens: all conversations, sample after sample; see `SelectorModel.assemble`.
        targets: per sample the IoUs of its conversations, (n,).

    Raises:
        ValueError: not one target per row, or a sample without any.
    """
    counts = [len(target) for target in targets]
    if sum(counts) != len(rows) or not all(counts):
        raise ValueError(f"{len(rows)} conversations but {counts} targets per sample")
    batch = model.assemble(rows, image_tokens, labels)
    states = model.states(batch)
    assert batch.labels is not None
    following = batch.labels[:, 1:]
    labelled = following != IGNORE_INDEX  # a handful of positions: no logits anywhere else
    logits = model.language.logits(states[:, :-1][labelled], fp32=True)
    ce = ce_weight * F.cross_entropy(logits.float(), following[labelled])
    scores = model.score_of(model.score_states(states, batch))
    errors = [
        (ours - target.to(scores)).abs().mean() for ours, target in zip(scores.split(counts), targets, strict=True)
    ]
    iou = iou_weight * torch.stack(errors).sum() / (len(errors) + COUNT_EPSILON)
    return SelectorLosses(ce + iou, ce, iou, scores)
