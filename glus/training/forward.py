"""The training forward of a micro-batch (reference glus.md, sections 1.5 to 1.11 and 6.4).

Work per sample: CLIP once per frame and SAM-2's image encoder once per query frame, whatever the number of
expressions; the language model once over all rows of the batch, and over what the rows begin with alike (context
and first query frame) once per sample; then the query frames in order, all expressions of the sample at once. The
host never waits for the device here; transformers may once, when it looks whether rows are packed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from glus.modeling.assemble import Layout, plan_layout, upload
from glus.modeling.glus import GLUSModel
from glus.modeling.mask_decoder import FrameFeatures, MaskOutput, upsample_logits
from glus.modeling.memory import MemoryEntry
from glus.text.tokenizer import IMAGE_INDEX
from glus.training.contrastive import ContrastiveResult, ObjectContrastiveLoss, TokenKey
from glus.training.losses import StepLosses, mask_bce, mask_dice, mean_of_pairs, seg_cross_entropy, total_loss
from glus.training.objective import Objective
from glus.training.sharing import can_share, common_length, states_behind

TRAINING_STRIDE = 1
"""Memory stride of training (C8, D12); inference has 3."""


@dataclass(frozen=True)
class TrainingSample:
    """E expressions about the same C context and Q query frames of one video.

    Attributes:
        rows: token ids of the E conversations, un-padded (`glus.text.labels.label_conversation`), each with
            C + Q image placeholders and Q [SEG]. The labels are not needed: only [SEG] is learned (5.1).
        clip_pixels: (C + Q, 3, S, S) CLIP input, context frames first.
        sam_pixels: (Q, 3, S', S') SAM-2 input of the query frames alone (D28).
        targets: (E, Q, H, W) masks of 0 and 1 (sums under `LossRules.overlap`), in the video's own size.
        dataset, video, exp_ids, frames: whose tokens these are; E ids, Q frame names.

    Raises:
        ValueError: the sizes disagree.
    """

    rows: tuple[Sequence[int], ...]
    clip_pixels: torch.Tensor
    sam_pixels: torch.Tensor
    targets: torch.Tensor
    dataset: str
    video: str
    exp_ids: tuple[str, ...]
    frames: tuple[str, ...]

    def __post_init__(self) -> None:
        expressions, queries = len(self.exp_ids), len(self.frames)
        fits = (
            expressions > 0
            and 0 < queries <= len(self.clip_pixels)
            and len(self.rows) == expressions
            and len(self.sam_pixels) == queries
            and self.targets.ndim == 4
            and tuple(self.targets.shape[:2]) == (expressions, queries)
        )
        if not fits:
            raise ValueError(
                f"{self.dataset} {self.video}: {expressions} expressions and {queries} query frames do not fit "
                f"{len(self.rows)} rows, {len(self.clip_pixels)} CLIP frames, {len(self.sam_pixels)} SAM frames "
                f"and targets {tuple(self.targets.shape)}"
            )

    @property
    def keys(self) -> list[TokenKey]:
        """Keys of the sample's E x Q tokens, expression-major."""
        return [TokenKey(self.dataset, self.video, exp, frame) for exp in self.exp_ids for frame in self.frames]

    def per_expression(self) -> list[TrainingSample]:
        """A sample for each expression, all with the same frames: what a schedule that shares nothing works on."""
        return [
            dataclasses.replace(
                self,
                rows=self.rows[i : i + 1],
                targets=self.targets[i : i + 1],
                exp_ids=self.exp_ids[i : i + 1],
            )
            for i in range(len(self.rows))
        ]

    def to(self, device: torch.device | str) -> TrainingSample:
        """The sample with its tensors on `device`; pinned ones travel without waiting."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TrainingSample:
        """Called by a DataLoader with `pin_memory=True`."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> TrainingSample:
        return dataclasses.replace(
            self,
            clip_pixels=move(self.clip_pixels),
            sam_pixels=move(self.sam_pixels),
            targets=move(self.targets),
        )


@dataclass(frozen=True)
class TrainingOutput:
    """What a micro-batch gives; K is the number of [SEG], row-major over samples, expressions and frames.

    Attributes:
        losses: see `StepLosses`; `losses.total` is what to back-propagate.
        seg_hidden: (K, H) language-model states that predict [SEG].
        seg_embedding: (K, out_dim) their projections, the mask decoder's prompts.
        low_res: per sample (E, Q, h, w) low-res mask logits, detached.
        contrastive: details of the contrastive loss; None without one.
        layout: where the rows' tokens went.
    """

    losses: StepLosses
    seg_hidden: torch.Tensor
    seg_embedding: torch.Tensor
    low_res: list[torch.Tensor]
    contrastive: ContrastiveResult | None
    layout: Layout

    @property
    def loss(self) -> torch.Tensor:
        """What to back-propagate."""
        return self.losses.total

    @property
    def scalars(self) -> dict[str, torch.Tensor]:
        """What to log."""
        return self.losses.detached()


@dataclass(frozen=True)
class FrameTrace:
    """One query frame of one sample; `memory` is None where no later frame reads it."""

    position: int
    features: FrameFeatures
    output: MaskOutput
    memory: MemoryEntry | None
    sample: int = 0


Observer = Callable[[FrameTrace], None]


def walk_frames(
    model: GLUSModel, sam_pixels: torch.Tensor, prompts: torch.Tensor, use_memory: bool
) -> Iterator[FrameTrace]:
    """Decode Q frames in order, all E expressions at once, each frame reading the memory of those before.

    Args:
        sam_pixels: (Q, 3, S, S).
        prompts: (E, Q, out_dim).
    """
    bank = model.new_bank(TRAINING_STRIDE) if use_memory else None
    for position in range(len(sam_pixels)):
        features = model.encode_frame(sam_pixels[position : position + 1])
        output = model.segment_frame(features, prompts[:, position], bank, position)
        is_last = position + 1 == len(sam_pixels)
        memory = None if is_last else model.remember(features, output, bank, position)
        yield FrameTrace(position, features, output, memory)


@dataclass(frozen=True)
class _MaskPart:
    """Mask losses of one sample's E x Q pairs, Q tensors of (E,) each, and its low-res logits."""

    bce: list[torch.Tensor]
    dice: list[torch.Tensor]
    low_res: torch.Tensor


class TrainingForward(nn.Module):
    """The module a training loop calls (and wraps for several ranks): samples in, losses out.

    In training mode the decoder takes its single mask (C9) and memory attention drops out (1.8); in evaluation
    mode the same call gives validation losses.

    Args:
        contrastive: its bank is filled by every call; None for no contrastive loss (validation, GLUS-A).
        use_memory: condition query frames on the memory of earlier ones.
    """

    def __init__(
        self,
        model: GLUSModel,
        objective: Objective | None = None,
        contrastive: ObjectContrastiveLoss | None = None,
        use_memory: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective or Objective()
        self.contrastive = contrastive
        self.use_memory = use_memory

    def forward(self, batch: Sequence[TrainingSample], observer: Observer | None = None) -> TrainingOutput:
        """Losses of a micro-batch whose tensors lie on the model's device.

        Raises:
            ValueError: a row with another number of images or [SEG] than its sample has frames, or one that
                is longer than the language model's positions.
        """
        rules, weights = self.objective.rules, self.objective.weights
        hidden, layout = self.read_segs(batch)
        ce = seg_cross_entropy(self.model.language.lm_head(hidden), self.model.seg_id, rules.fp32)
        embedding = self.model.seg_head(hidden)
        contrast = None
        if self.contrastive is not None:
            contrast = self.contrastive([key for sample in batch for key in sample.keys], embedding)
        parts = [
            self._decode(number, sample, prompts, observer)
            for number, (sample, prompts) in enumerate(zip(batch, _per_sample(batch, embedding), strict=True))
        ]
        losses = total_loss(
            ce,
            mean_of_pairs([pairs for part in parts for pairs in part.bce]),
            mean_of_pairs([pairs for part in parts for pairs in part.dice]),
            contrast.mean if contrast is not None else None,
            weights,
        )
        return TrainingOutput(losses, hidden, embedding, [part.low_res for part in parts], contrast, layout)

    def read_segs(self, batch: Sequence[TrainingSample]) -> tuple[torch.Tensor, Layout]:
        """One pass of the language model over all rows: the (K, H) states that predict each [SEG]."""
        tokens = self.model.encode_clip(torch.cat([sample.clip_pixels for sample in batch]))
        per_sample = tokens.split([len(sample.clip_pixels) for sample in batch])
        rows = [row for sample in batch for row in sample.rows]
        layout = plan_layout(rows, tokens.shape[1], self.model.seg_id)
        _check_rows(batch, layout)
        limit = self.model.config.language.max_positions
        if max(layout.lengths) > limit:
            raise ValueError(f"a conversation takes {max(layout.lengths)} positions, the model has {limit}")
        shares = len(rows) > len(batch) and can_share(self.model)
        limit = min(list(row).index(self.model.seg_id) for row in rows) - 1  # its state predicts a [SEG]
        cut = common_length(rows, limit) if shares else 0
        states, rest = states_behind(
            self.model, [sample.rows for sample in batch], per_sample, cut, self.model.seg_id
        )
        where = (rest.layout.seg_rows, rest.layout.seg_columns)
        return states[upload(where[0], states.device), upload(where[1], states.device)], layout

    def _decode(
        self, number: int, sample: TrainingSample, prompts: torch.Tensor, observer: Observer | None
    ) -> _MaskPart:
        """Walk the query frames of one sample; `prompts` is (E, Q, out_dim)."""
        height, width = sample.targets.shape[-2:]
        bce, dice, low_res = [], [], []
        for frame in walk_frames(self.model, sample.sam_pixels, prompts, self.use_memory):
            logits = upsample_logits(frame.output.low_res, height, width)
            bce.append(mask_bce(logits, sample.targets[:, frame.position]))
            dice.append(mask_dice(logits, sample.targets[:, frame.position]))
            low_res.append(frame.output.low_res[:, 0].detach())
            if observer is not None:
                observer(dataclasses.replace(frame, sample=number))
        return _MaskPart(bce, dice, torch.stack(low_res, dim=1))


def _per_sample(batch: Sequence[TrainingSample], embedding: torch.Tensor) -> list[torch.Tensor]:
    """(K, out_dim) -> per sample (E, Q, out_dim)."""
    shapes = [(len(sample.rows), len(sample.frames)) for sample in batch]
    parts = embedding.split([rows * queries for rows, queries in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def _check_rows(batch: Sequence[TrainingSample], layout: Layout) -> None:
    """Every row shows all frames of its sample and answers each query frame once (D9)."""
    segs = iter(layout.seg_counts)
    for sample in batch:
        for exp_id, row in zip(sample.exp_ids, sample.rows, strict=True):
            images, answers = list(row).count(IMAGE_INDEX), next(segs)
            if images != len(sample.clip_pixels) or answers != len(sample.frames):
                raise ValueError(
                    f"{sample.dataset} {sample.video}, expression {exp_id}: the conversation has {images} images "
                    f"and {answers} [SEG] for {len(sample.clip_pixels)} frames, {len(sample.frames)} of them asked"
                )
