"""What a selector learns, from which losses, and the training forward (reference kfs.md, 2.7, 2.8 and 9.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from glus.modeling.assemble import Assembled, upload
from glus.text.labels import IGNORE_INDEX
from glus.training import parameters
from glus.training.sharing import can_share, common_length, states_behind
from glus.training.task import Samples
from kfs.model import SelectorModel
from kfs.samples import SelectorSample

COUNT_EPSILON = 1e-8
TRAINED = frozenset({"LoRA", "embed_tokens and lm_head", "score head"})
"""Groups of parameters, see `glus.training.parameters.GROUPS`."""


def select_trainable(model: SelectorModel, which: Literal["released", "all"] = "released") -> None:
    """Train the head, both ends of the language model and its adapters, or everything."""
    parameters.select_trainable(model, which, TRAINED)


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

    @property
    def loss(self) -> torch.Tensor:
        """What to back-propagate."""
        return self.total

    @property
    def scalars(self) -> dict[str, torch.Tensor]:
        """What to log."""
        return {"ce": self.ce.detach(), "iou": self.iou.detach()}


def selector_losses(
    model: SelectorModel,
    rows: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    image_tokens: torch.Tensor,
    targets: Sequence[torch.Tensor],
    ce_weight: float = 1.0,
    iou_weight: float = 1.0,
) -> SelectorLosses:
    """Losses of a batch of samples, each with one or more conversations, every one read as a whole.

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
    return losses_of(model, [(model.states(batch), batch)], targets, ce_weight, iou_weight)


def losses_of(
    model: SelectorModel,
    read: Sequence[tuple[torch.Tensor, Assembled]],
    targets: Sequence[torch.Tensor],
    ce_weight: float,
    iou_weight: float,
) -> SelectorLosses:
    """Losses from states; `read` holds (rows, L, H) with what was spliced, all rows in the order of `targets`."""
    hidden, wanted, heads = [], [], []
    for states, batch in read:
        assert batch.labels is not None
        following = batch.labels[:, 1:]
        labelled = following != IGNORE_INDEX  # a handful of positions: no logits anywhere else
        hidden.append(states[:, :-1][labelled])
        wanted.append(following[labelled])
        heads.append(model.score_states(states, batch))
    logits = model.language.logits(torch.cat(hidden), fp32=True)
    ce = ce_weight * F.cross_entropy(logits.float(), torch.cat(wanted))
    scores = model.score_of(torch.cat(heads))
    parts = scores.split([len(target) for target in targets])
    errors = [(ours - target.to(scores)).abs().mean() for ours, target in zip(parts, targets, strict=True)]
    iou = iou_weight * torch.stack(errors).sum() / (len(errors) + COUNT_EPSILON)
    return SelectorLosses(ce + iou, ce, iou, scores)


class SelectorTraining(nn.Module):
    """The module a training loop calls: samples in, losses out.

    Every distinct frame of a sample passes CLIP and merging once, and what its conversations begin with alike (the
    reference frames and the target) passes the language model once, where `can_share` allows.
    """

    def __init__(self, model: SelectorModel, ce_weight: float = 1.0, iou_weight: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.weights = (ce_weight, iou_weight)

    def forward(self, batch: Sequence[SelectorSample]) -> SelectorLosses:
        """Losses of a micro-batch whose tensors lie on the model's device."""
        tokens = self.model.encode_clip(torch.cat([sample.pixels for sample in batch]))
        frames = tokens.split([len(sample.pixels) for sample in batch])
        shown = [own[upload(sample.images, own.device)] for own, sample in zip(frames, batch, strict=True)]
        # Samples show different numbers of frames, so little is alike among them: each is a group of its own.
        groups = [range(n, n + 1) for n in range(len(batch))] if can_share(self.model) else [range(len(batch))]
        read = [self._read([batch[n] for n in group], [shown[n] for n in group]) for group in groups]
        return losses_of(self.model, read, [sample.targets for sample in batch], *self.weights)

    def _read(
        self, samples: Sequence[SelectorSample], shown: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, Assembled]:
        rows, labels = [sample.rows for sample in samples], [sample.labels for sample in samples]
        cut = 0
        if len(samples) == 1 and len(rows[0]) > 1:
            # The state before the first labelled token predicts it.
            first = min(next(i for i, label in enumerate(row) if label != IGNORE_INDEX) for row in labels[0])
            cut = common_length(rows[0], first - 1)
        return states_behind(self.model, rows, shown, cut, self.model.score_id, labels)


class SelectorTask:
    """Selector training as the loop sees it (`glus.training.task.Task`)."""

    name = "selector"

    def __init__(
        self, model: SelectorModel, dataset: Samples, ce_weight: float = 1.0, iou_weight: float = 1.0
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.module: nn.Module = SelectorTraining(model, ce_weight, iou_weight)

    def collate(self, samples: list[SelectorSample]) -> list[SelectorSample]:
        return samples

    def train_mode(self) -> None:
        self.module.train()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state
