"""Pretraining of a small GLUS: masks from hints, and hints from sentences.

The released model starts from CLIP, LISA and SAM-2. A small one starts from nothing, and trained as a whole it
stays blind to the sentence for very long: the mask decoder cannot use a [SEG] embedding that means nothing yet,
and so the language model is never told what to say. Here three sides learn apart, on the same videos:

- the masks side segments, and tracks with its memory, what a *hint* points at (roughly where, and the looks);
- the sight side is the CLIP tower: its image tokens have to know what they show;
- the language side reads frames (by a tower that sees) and sentences, and its [SEG] state has to know the hint.
  Its image tokens have to know what the objects do (move left, stop, ...), which no sentence need ask for.

A third loss lets the [SEG] head say what the masks side reads. Then `glus train` goes on with both together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from glus.errors import InputError
from glus.modeling.glus import GLUSModel
from glus.modeling.mask_decoder import upsample_logits
from glus.training.forward import walk_frames
from glus.training.losses import mask_bce, mask_dice
from glus.training.pretraining.attention import (
    GATHER,
    NEIGHBOURS,
    TRACK,
    Reading,
    attention_loss,
    look,
    neighbour,
    read,
)
from glus.training.pretraining.facts import CLAIMS, LOOK_COUNT, LOOKS, OUTLINE, PREDICATES, UNKNOWN, hint_size
from glus.training.pretraining.samples import (
    LanguageSample,
    MaskSample,
    PretrainingSample,
    PretrainingSet,
    Side,
    SightSample,
)
from glus.training.task import Samples


@dataclass(frozen=True)
class PretrainingOutput:
    """Sum of the losses, and each of them (and hit rates) by name."""

    loss: torch.Tensor
    scalars: dict[str, torch.Tensor] = field(default_factory=dict)


class Pretraining(nn.Module):
    """A GLUS model with the heads that only pretraining needs; see the module's text.

    `code` is the fixed code that hints become prompts by. Parts that `side` does not train are frozen.
    """

    code: torch.Tensor

    def __init__(self, model: GLUSModel, side: Side, context_frames: int = 4) -> None:
        super().__init__()
        self.model = model
        self.side = side
        if model.config.language.num_layers < -TRACK:
            raise InputError(
                f"pretraining teaches the attention of layers that need language.num_layers >= {-TRACK}"
            )
        vision = model.config.vision
        if vision.num_layers + 1 + vision.select_layer <= GATHER:
            raise InputError(
                f"pretraining teaches the attention of {GATHER + 1} layers of the tower that are used"
            )
        model.requires_grad_(False)
        trained: dict[Side, list[nn.Module]] = {
            "sight": [model.vision],
            "language": [model.language, model.seg_head],
            "masks": [model.sam],
        }
        for part in trained[side]:
            part.requires_grad_(True)
        width, out = model.config.language.hidden_size, model.config.sam2.hidden_size
        self.cells = model.config.vision.tokens_per_image
        self.see = nn.Linear(width, 1 + LOOK_COUNT)
        self.place = nn.Linear(width, self.cells)
        self.draw = nn.Linear(model.config.vision.hidden_size, 9 * OUTLINE**2)
        self.path = nn.Linear(width, 4 * (context_frames + 1))
        self.follow = nn.Linear(width, 1 + LOOK_COUNT + len(CLAIMS))
        self.sense = nn.Linear(width, len(PREDICATES) + 2 * LOOK_COUNT)
        self.point = nn.Linear(width, self.cells + 1 + LOOK_COUNT)
        self.register_buffer("code", _random_code(hint_size(self.cells), out))

    def forward(self, batch: Sequence[PretrainingSample]) -> PretrainingOutput:
        """Losses of a batch of this side's samples; language samples must hold equally many sentences."""
        scalars: dict[str, torch.Tensor] = {}
        if self.side == "sight":
            loss = self._sight(cast(Sequence[SightSample], batch), scalars)
        elif self.side == "language":
            loss = self._language(cast(Sequence[LanguageSample], batch), scalars)
        else:
            loss = self._masks(cast(Sequence[MaskSample], batch), scalars)
        return PretrainingOutput(loss, {name: value.detach() for name, value in scalars.items()})

    def prompt(self, hints: torch.Tensor) -> torch.Tensor:
        """(..., D) hints -> (..., out_dim) prompts of the mask decoder: a fixed code, so that both sides may learn
        it at once, or apart.

        The mean position code of the cells is added, in the decoder's own code: nothing has to be learned there
        to be told where.
        """
        shares = hints[..., : self.cells].clamp(min=0)
        side = int(self.cells**0.5)
        grid = F.adaptive_avg_pool2d(self.model.sam.dense_position().float(), side).flatten(2)[0].T
        centre = shares @ grid / shares.sum(-1, keepdim=True).clamp(min=1)
        return hints @ self.code + centre

    def _sight(self, batch: Sequence[SightSample], scalars: dict[str, torch.Tensor]) -> torch.Tensor:
        """Every image token knows what it shows, and its cell: what points at an object has to read it there.

        No patch shows a shape: patches first know the outlines around them, then gather those of their object.
        """
        sight = look(self.model, torch.cat([sample.clip_pixels for sample in batch]))
        looks = torch.cat([sample.looks for sample in batch])
        told = self.see(sight.tokens)
        seen, scalars["see"] = _looks_loss(told, looks)
        scalars["colour"], scalars["shape"], *_ = _hits(told[..., 1:].flatten(0, -2), looks.flatten(0, -2))
        cell = torch.arange(self.cells, device=looks.device).expand(len(looks), -1)
        placed = F.cross_entropy(self.place(sight.tokens).float().flatten(0, 1), cell.flatten())
        drawn = F.binary_cross_entropy_with_logits(
            self.draw(F.layer_norm(sight.patches, sight.patches.shape[-1:])).float(),
            with_neighbours(torch.cat([sample.outlines for sample in batch])),
        )
        taught = _sight_attention(sight.attention, torch.cat([sample.patch_owners for sample in batch]))
        scalars |= {"place": placed, "draw": drawn, **taught}
        return 4 * seen + 0.3 * placed + 2 * drawn + 0.3 * taught["gather"] + taught["neighbour"]

    def _language(self, batch: Sequence[LanguageSample], scalars: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            images = self.model.encode_clip(torch.cat([sample.clip_pixels for sample in batch]))
        reading = read(self.model, [sample.rows for sample in batch], images)
        query = self.follow(F.layer_norm(reading.facts, reading.facts.shape[-1:]))
        last_looks = torch.stack([sample.looks[-1] for sample in batch])
        followed, scalars["follow"] = _looks_loss(query[..., : 1 + LOOK_COUNT], last_looks)
        verdicts = torch.stack([sample.claims for sample in batch])
        claimed = F.binary_cross_entropy_with_logits(
            query[..., 1 + LOOK_COUNT :].float(),
            (verdicts > 0).float(),
            # few objects do any one thing
            weight=verdicts.abs() * torch.where(verdicts > 0, 4.0, 1.0),
            reduction="sum",
        ) / verdicts.abs().sum().clamp(min=1)
        walked = self._paths(reading.paths, torch.stack([sample.paths for sample in batch]))
        sensed = self._sense(batch, reading.senses, scalars)
        pointed = self._pointing(batch, reading.answers, scalars)
        answers = self.model.language.logits(reading.answers, fp32=True).float()
        answer = F.cross_entropy(answers, answers.new_full((len(answers),), self.model.seg_id, dtype=torch.long))
        taught = self._attention(batch, reading)
        scalars |= {"claims": claimed, "path": walked, "point": pointed, "answer": answer, **taught}
        told = followed + 10 * walked + 5 * claimed
        return told + sensed + pointed + torch.stack(list(taught.values())).sum() + 0.1 * answer

    def _paths(self, states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Image tokens (B, N, H) know where their object is in every frame, (B, N, frames, 4): from that they
        can tell what it does, which alone they would not find in ten times the steps."""
        guess = self.path(F.layer_norm(states, states.shape[-1:])).float().unflatten(-1, wanted.shape[-2:])
        shown = wanted[..., -1, :1].detach()  # tokens that show nothing have no path
        present, there = wanted[..., 0], wanted[..., 1:]
        seen = F.binary_cross_entropy_with_logits(guess[..., 0], present, reduction="none") * shown
        off = (guess[..., 1:] - there).abs().mean(dim=-1) * present
        return 0.1 * seen.sum() / (shown.sum() * present.shape[-1]).clamp(min=1) + off.sum() / present.sum().clamp(
            min=1
        )

    def _sense(
        self, batch: Sequence[LanguageSample], states: torch.Tensor, scalars: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Before it looks at objects the answer knows what the words claim, and which looks they name."""
        guess = self.sense(F.layer_norm(states, states.shape[-1:])).float()
        claims, looks = guess.split([len(PREDICATES), 2 * LOOK_COUNT], dim=-1)
        said = torch.cat([sample.predicates for sample in batch])
        scalars["said"] = (claims.argmax(-1) == said).float().mean()
        named, scalars["named"] = _attribute_loss(
            looks.reshape(-1, LOOK_COUNT), torch.cat([sample.named for sample in batch]).flatten(0, 1)
        )
        return F.cross_entropy(claims, said) + named

    def _attention(self, batch: Sequence[LanguageSample], reading: Reading) -> dict[str, torch.Tensor]:
        """Losses of the attention that is taught (`attention`), by name."""
        hints = torch.cat([sample.hints for sample in batch])
        nouns = torch.cat([sample.nouns for sample in batch])
        before = (reading.look.shape[-1] - self.cells, 0)  # the last frame's tokens are the last positions
        half = reading.look.shape[1] // 2
        losses = {
            "look": attention_loss(reading.look[:, :half], F.pad(hints[:, : self.cells], before)),
            "noun": attention_loss(reading.noun[:, :half], F.pad(nouns[:, 0], before)),
            "other": attention_loss(reading.noun[:, half:], F.pad(nouns[:, 1], before)),
        }
        owners = torch.stack([sample.owners for sample in batch])
        tracks = []
        for frame, start in enumerate(reading.frames[:-1]):  # one head per context frame
            same = (owners[:, -1, :, None] == owners[:, frame, None]) & (owners[:, -1, :, None] >= 0)
            wanted = F.pad(same.float(), (start, reading.track.shape[-1] - start - self.cells))
            head = frame % reading.track.shape[1]
            tracks.append(attention_loss(reading.track[:, head, :, None], wanted))
        return losses | ({"track": torch.stack(tracks).mean()} if tracks else {})

    def _pointing(
        self, batch: Sequence[LanguageSample], states: torch.Tensor, scalars: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """What the [SEG] states know of the objects meant, and whether the [SEG] head can say it."""
        hints = torch.cat([sample.hints for sample in batch])
        where, present = hints[:, : self.cells], hints[:, self.cells]
        guess = self.point(states).float()
        cells, exists = guess[:, : self.cells], guess[:, self.cells]
        wanted = _one_hot_to_index(hints[:, self.cells + 2 :])
        attributes, _ = _attribute_loss(guess[:, self.cells + 1 :], wanted)
        with torch.no_grad():
            heard = self.prompt(hints)
            top = where.gather(1, cells.argmax(dim=1, keepdim=True))[:, 0] > 0.3
            scalars["hit"] = (top * present).sum() / present.sum().clamp(min=1)
        spoken = F.mse_loss(self.model.seg_head(states).float(), heard.float())
        scalars["spoken"] = spoken
        located = F.binary_cross_entropy_with_logits(cells, where)
        existing = F.binary_cross_entropy_with_logits(exists, present)
        return 6 * located + 0.3 * existing + 0.5 * attributes + spoken

    def _masks(self, batch: Sequence[MaskSample], scalars: dict[str, torch.Tensor]) -> torch.Tensor:
        walks = [self._walk(sample) for sample in batch]
        bce, dice, quality, exists, iou = (torch.cat(part).mean() for part in zip(*walks, strict=True))
        scalars |= {"bce": bce, "dice": dice, "mask_iou": iou}
        return 4 * bce + dice + 0.2 * quality + 0.05 * exists

    def _walk(self, sample: MaskSample) -> tuple[torch.Tensor, ...]:
        """Per (object, frame): BCE, Dice, error of the predicted IoU, loss of the object score, IoU."""
        height, width = sample.masks.shape[-2:]
        prompts = self.prompt(sample.mask_hints)
        parts = []
        for frame in walk_frames(self.model, sample.sam_pixels, prompts, use_memory=True):
            output = frame.output
            logits = upsample_logits(output.low_res, height, width)
            target = sample.masks[:, frame.position].float()
            with torch.no_grad():
                iou = _iou(logits > 0, target > 0)
            exists = target.flatten(1).amax(dim=1)
            parts.append(
                (
                    mask_bce(logits, target),
                    mask_dice(logits, target),
                    (output.candidate_iou[:, 0].float() - iou).square(),
                    F.binary_cross_entropy_with_logits(output.object_score.float(), exists, reduction="none"),
                    iou,
                )
            )
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _iou(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(E, H, W) bool twice -> (E,); 1 where both are empty."""
    inter = (predicted & target).flatten(1).sum(dim=1).float()
    union = (predicted | target).flatten(1).sum(dim=1).float()
    return torch.where(union > 0, inter / union.clamp(min=1), 1.0)


def _attribute_loss(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross entropy and hit rate of colour, shape, texture, size: (N, LOOK_COUNT) against (N, 4)."""
    losses = []
    for part, target in zip(_parts(logits), wanted.unbind(-1), strict=True):
        sums = F.cross_entropy(part, target, ignore_index=UNKNOWN, reduction="sum")
        losses.append(sums / (target != UNKNOWN).sum().clamp(min=1))
    return torch.stack(losses).mean(), torch.stack(_hits(logits, wanted)).mean()


def _parts(logits: torch.Tensor) -> Sequence[torch.Tensor]:
    """(N, LOOK_COUNT) -> logits of each look."""
    return logits.float().split([len(options) for options in LOOKS], dim=-1)


def _looks_loss(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Is there an object, and what does it look like: (..., 1 + LOOK_COUNT) against (..., 4)."""
    exists = (wanted[..., 0] != UNKNOWN).float()
    presence = F.binary_cross_entropy_with_logits(logits[..., 0].float(), exists)
    attributes, hits = _attribute_loss(logits[..., 1:].flatten(0, -2), wanted.flatten(0, -2))
    return presence + attributes, hits


def _sight_attention(attention: Sequence[torch.Tensor], owners: torch.Tensor) -> dict[str, torch.Tensor]:
    """Losses of the CLIP tower's attention (`attention.Sight`), by name; owners (B, P)."""
    side = int(owners.shape[1] ** 0.5)
    near = [
        attention_loss(scores[:, head, :, None], neighbour(side, step, owners.device).expand(len(owners), -1, -1))
        for scores, steps in zip(attention, NEIGHBOURS, strict=False)
        for head, step in enumerate(steps[: scores.shape[1]])
    ]
    same = (owners[:, :, None] == owners[:, None]) & (owners[:, :, None] >= 0)
    taught = max(1, attention[GATHER].shape[1] - 1)  # the last head is free
    gathered = attention_loss(attention[GATHER][:, :taught].transpose(1, 2), F.pad(same.float(), (1, 0)))
    return {"neighbour": torch.stack(near).mean(), "gather": gathered}


def with_neighbours(outlines: torch.Tensor) -> torch.Tensor:
    """(B, P, K) of patches -> (B, P, 9 K) of the 3 x 3 patches around each, 0 beyond the border."""
    side = int(outlines.shape[1] ** 0.5)
    grid = outlines.transpose(1, 2).unflatten(2, (side, side))
    return F.unfold(grid, 3, padding=1).transpose(1, 2)


def _hits(logits: torch.Tensor, wanted: torch.Tensor) -> list[torch.Tensor]:
    """Hit rate of each look; arguments as of `_attribute_loss`."""
    rates = []
    for part, target in zip(_parts(logits), wanted.unbind(-1), strict=True):
        known = target != UNKNOWN
        rates.append(((part.argmax(-1) == target) & known).sum() / known.sum().clamp(min=1))
    return rates


def _one_hot_to_index(one_hot: torch.Tensor) -> torch.Tensor:
    """(N, LOOK_COUNT) -> (N, 4), `UNKNOWN` where no entry is set."""
    parts = one_hot.split([len(options) for options in LOOKS], dim=-1)
    return torch.stack([torch.where(part.amax(-1) > 0, part.argmax(-1), UNKNOWN) for part in parts], dim=-1)


def _random_code(rows: int, columns: int, scale: float = 4.0) -> torch.Tensor:
    """(rows, columns) fixed matrix whose rows are as far from each other as they can be."""
    noise = torch.randn(max(rows, columns), min(rows, columns), generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(noise).Q
    return scale * (basis.T if rows < columns else basis)


class PretrainingTask:
    """Pretraining as the training loop sees it (`glus.training.task.Task`)."""

    name = "pretraining"

    def __init__(self, model: GLUSModel, dataset: PretrainingSet) -> None:
        self.model = model
        self.dataset: Samples = dataset
        self.module: nn.Module = Pretraining(model, dataset.side, dataset.config.context_frames)

    def collate(self, samples: list[PretrainingSample]) -> list[PretrainingSample]:
        return samples

    def train_mode(self) -> None:
        """Training mode, without dropout: no sample comes twice."""
        self.module.train()
        self.model.sam.memory_attention.eval()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state
