"""Pretraining samples: synthetic videos as each side of the model needs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from glus.config import ModelConfig
from glus.data.sampling import context_indices
from glus.data.synthetic import SyntheticConfig, SyntheticVideo
from glus.data.synthetic.candidates import MOTION
from glus.data.synthetic.dice import Dice
from glus.data.synthetic.sentences import absent
from glus.data.synthetic.source import DATASET, Reading, draw_video, texts
from glus.data.transforms import clip_image, sam_image
from glus.errors import InputError
from glus.text.tokenizer import GlusTokenizer
from glus.training.batches import draw_row
from glus.training.pretraining.facts import (
    PREDICATES,
    UNKNOWN,
    cell_shares,
    claims,
    fitting,
    hint,
    looks,
    named,
    no_hint,
    outlines,
    paths,
    per_cell,
    shown,
)

WITHHELD, MISLEADING = 0.2, 0.07
"""Chance that a later frame's hint is kept back, or points at another object: what memory is for."""


@dataclass(frozen=True)
class PretrainingConfig:
    """What a pretraining sample holds.

    Attributes:
        pictures: pictures of a sight sample, each of another scene.
        sentences: expressions about one frame, all after the same images.
        objects: masks asked for in the mask frames.
        mask_frames: frames of the mask side; one means no memory.
        looks_only: share of the hints at one object that give only its looks: the mask decoder has to search.
        motion: ask for what moves how, too; a single frame cannot answer that.
        absent: share of the sentences that are about an object that is not there.
        expressions: "blind" hides them (`glus.data.synthetic.source.NO_SENTENCE`).
    """

    pictures: int = 5
    sentences: int = 16
    objects: int = 5
    mask_frames: int = 1
    looks_only: float = 0.25
    context_frames: int = 4
    expressions: Reading = "read"
    motion: bool = True
    absent: float = 0.05
    video: SyntheticConfig = dataclasses.field(default_factory=lambda: SyntheticConfig(max_sentences=24))

    def __post_init__(self) -> None:
        for name in ("pictures", "sentences", "objects", "mask_frames", "context_frames"):
            least = 0 if name == "context_frames" else 1
            if getattr(self, name) < least:
                raise InputError(f"pretraining.{name} must be at least {least}, found {getattr(self, name)}")


Side = Literal["sight", "language", "masks"]
PICTURE = SyntheticConfig(frames=8, min_objects=6, max_objects=8)
"""Scenes of the sight side: full of objects, short."""


@dataclass(frozen=True)
class SightSample:
    """Pictures of F scenes, N cells and P patches of the CLIP tower each (see `facts`).

    Attributes:
        clip_pixels: (F, 3, S, S).
        looks: (F, N, 4) what each cell shows, `UNKNOWN` where nothing.
        patch_owners: (F, P) number of the object each patch shows, -1 for none.
        outlines: (F, P, OUTLINE^2) share of the parts of each patch that any object covers.
    """

    video: str
    clip_pixels: torch.Tensor
    looks: torch.Tensor
    patch_owners: torch.Tensor
    outlines: torch.Tensor
    dataset: str = DATASET


@dataclass(frozen=True)
class LanguageSample:
    """A video and K sentences about it, N cells per frame, D numbers per hint.

    Attributes:
        clip_pixels: (C + 1, 3, S, S) context frames, then the query frame.
        looks: (C + 1, N, 4) what each cell shows, `UNKNOWN` where nothing.
        owners: (C + 1, N) number of the object each cell shows, -1 for none.
        claims: (N, claims) verdicts on what each cell of the query frame shows.
        paths: (N, C + 1, 4) where that is in each frame (`facts.paths`).
        rows: K conversations of one round, cut before [SEG]; alike up to their last image.
        hints: (K, D) the objects meant, in the query frame.
        nouns: (K, 2, N) share of each cell of the query frame taken by the objects that the noun fits, claim or
            no claim, and by the second object spoken of.
    """

    video: str
    clip_pixels: torch.Tensor
    looks: torch.Tensor
    owners: torch.Tensor
    claims: torch.Tensor
    paths: torch.Tensor
    rows: tuple[tuple[int, ...], ...]
    hints: torch.Tensor
    nouns: torch.Tensor
    predicates: torch.Tensor
    named: torch.Tensor
    dataset: str = DATASET


@dataclass(frozen=True)
class MaskSample:
    """Q frames of a video and E things to segment in them.

    Attributes:
        sam_pixels: (Q, 3, S', S').
        mask_hints: (E, Q, D) imperfect hints at the objects of `masks`.
        masks: (E, Q, H, W) of 0 and 1.
    """

    video: str
    sam_pixels: torch.Tensor
    mask_hints: torch.Tensor
    masks: torch.Tensor
    dataset: str = DATASET


PretrainingSample = SightSample | LanguageSample | MaskSample


class PretrainingSet:
    """Samples of one side by number; a pure function of (seed, number)."""

    def __init__(
        self, config: PretrainingConfig, model: ModelConfig, tokenizer: GlusTokenizer, seed: int, side: Side
    ) -> None:
        cells = int(model.vision.tokens_per_image**0.5)
        if cells * cells != model.vision.tokens_per_image or model.behaviour.token_pooling != "grid":
            raise InputError("pretraining needs image tokens on a square grid: behaviour token_pooling: grid")
        if model.behaviour.clip_view != "squash":
            raise InputError("pretraining needs image tokens that cover the frame: behaviour clip_view: squash")
        self.config, self.model, self.tokenizer, self.seed, self.side = config, model, tokenizer, seed, side
        self.cells, self.patches = cells, model.vision.image_size // model.vision.patch_size

    def __getitem__(self, number: int) -> PretrainingSample:
        rng = np.random.default_rng([self.seed, number])
        if self.side == "sight":
            return self._sight(rng)
        name, video = draw_video(rng, self.config.video)
        return self._language(name, video, rng) if self.side == "language" else self._masks(name, video, rng)

    def _sight(self, rng: np.random.Generator) -> SightSample:
        drawn = [draw_video(rng, PICTURE, told=False) for _ in range(self.config.pictures)]
        videos = [video for _, video in drawn]
        frames = [int(i) for i in rng.integers(PICTURE.frames, size=len(videos))]
        cells = [
            per_cell(looks(v), shown(v, frame, self.cells), UNKNOWN)
            for v, frame in zip(videos, frames, strict=True)
        ]
        return SightSample(
            "+".join(name for name, _ in drawn),
            self._clip_pixels([v.frames[frame] for v, frame in zip(videos, frames, strict=True)]),
            torch.from_numpy(np.stack(cells)),
            torch.from_numpy(
                np.stack([shown(v, frame, self.patches) for v, frame in zip(videos, frames, strict=True)])
            ),
            torch.from_numpy(
                np.stack([outlines(v, frame, self.patches) for v, frame in zip(videos, frames, strict=True)])
            ),
        )

    def _clip_pixels(self, frames: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        size, view = self.model.vision.image_size, self.model.behaviour.clip_view
        return torch.stack([clip_image(frame, size, view) for frame in frames])

    def _language(self, name: str, video: SyntheticVideo, rng: np.random.Generator) -> LanguageSample:
        # Without motion "initially" is all that is said of time: the first frame has to be the one shown.
        query = int(rng.integers(len(video.frames))) if self.config.motion else 0
        frames = [*context_indices(rng, len(video.frames), self.config.context_frames), query]
        look = looks(video)
        owners = [shown(video, frame, self.cells) for frame in frames]
        said = [s for s in video.sentences if self.config.motion or s.kind != MOTION] or video.sentences
        count, wanted = len(said), self.config.sentences
        # A video with less to say repeats itself in other templates, so that batches stay rectangular.
        chosen = [*rng.permutation(count)[:wanted], *rng.integers(count, size=max(0, wanted - count))]
        dice = Dice(int(rng.integers(2**31)))
        sentences = [
            absent(dice, video.scene.things) if dice.chance(self.config.absent) else said[int(i)] for i in chosen
        ]
        hints = [
            hint(video.target(s)[query], self.cells, look[s.targets[0]] if len(s.targets) == 1 else None)
            for s in sentences
        ]
        nouns = [
            [_cells_of(video, fitting(video, n), query, self.cells) for n in (s.noun, s.other)] for s in sentences
        ]
        asked = (1, self.config.context_frames, self.tokenizer, self.model.behaviour)
        rows = [draw_row(text, *asked, rng) for text in texts(sentences, self.config.expressions)]
        return LanguageSample(
            name,
            self._clip_pixels([video.frames[frame] for frame in frames]),
            torch.from_numpy(np.stack([per_cell(look, owner, UNKNOWN) for owner in owners])),
            torch.from_numpy(np.stack(owners)),
            torch.from_numpy(per_cell(claims(video), owners[-1], 0)),
            torch.from_numpy(per_cell(paths(video, frames), owners[-1], 0)),
            tuple(tuple(ids[: ids.index(self.tokenizer.seg_id)]) for ids in rows),
            torch.from_numpy(np.stack(hints)),
            torch.from_numpy(np.array(nouns, np.float32)),
            torch.tensor([PREDICATES.index(s.predicate) for s in sentences]),
            torch.tensor([[named(s.noun), named(s.other)] for s in sentences]),
        )

    def _masks(self, name: str, video: SyntheticVideo, rng: np.random.Generator) -> MaskSample:
        total, count = len(video.frames), self.config.mask_frames
        stride = int(rng.integers(1, max(2, min(5, total // count))))
        start = int(rng.integers(total - stride * (count - 1)))
        frames = [start + stride * i for i in range(count)]
        order = [int(i) for i in rng.permutation(len(video.masks))]
        groups: list[tuple[int, ...]] = [(i,) for i in order[: self.config.objects]]
        if len(groups) > 2:
            groups[-1] = tuple(order[:2])  # several objects under one prompt, too
        masks = np.stack([np.asarray(video.masks[list(group)].any(axis=0))[frames] for group in groups])
        look = looks(video)
        hints = np.stack(
            [
                [
                    self._imperfect_hint(video, frame, mask, look[g[0]] if len(g) == 1 else None, n == 0, rng)
                    for n, (frame, mask) in enumerate(zip(frames, clip, strict=True))
                ]
                for g, clip in zip(groups, masks, strict=True)
            ]
        )
        size = self.model.sam2.image_size
        return MaskSample(
            name,
            torch.stack([sam_image(video.frames[frame], size) for frame in frames]),
            torch.from_numpy(hints.astype(np.float32)),
            torch.from_numpy(masks.astype(np.uint8)),
        )

    def _imperfect_hint(
        self,
        video: SyntheticVideo,
        frame: int,
        mask: NDArray[np.bool_],
        look: NDArray[np.int64] | None,
        first: bool,
        rng: np.random.Generator,
    ) -> NDArray[np.float32]:
        """As good as a language model's guess: moved a little, fainter or stronger, without looks now and then."""
        fate = 1.0 if first else rng.random()
        if fate < WITHHELD:
            return no_hint(self.cells)
        if fate < WITHHELD + MISLEADING:
            mask, look = video.masks[int(rng.integers(len(video.masks))), frame], None
        shift = rng.normal(0, 0.02 * min(mask.shape), 2).round().astype(int)
        told = hint(np.roll(mask, shift, (0, 1)), self.cells, None if rng.random() < 0.3 else look)
        cells = self.cells**2
        if look is not None and rng.random() < self.config.looks_only:
            searched = hint(mask, self.cells, look)
            searched[:cells] = 0
            return searched
        told[:cells] = told[:cells] * rng.uniform(0.7, 1.1) + rng.normal(0, 0.03, cells)
        return told


def _cells_of(video: SyntheticVideo, objects: list[int], frame: int, side: int) -> NDArray[np.float32]:
    """(side^2,) share of each cell that some objects cover in a frame, 0..1."""
    return cell_shares(np.asarray(video.masks[np.array(objects, np.int64), frame].any(axis=0))[None], side).ravel()
