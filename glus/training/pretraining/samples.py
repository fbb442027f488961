"""Pretraining samples: one synthetic video as the language side and as the mask side see it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from glus.config import ModelConfig
from glus.data.sampling import context_indices
from glus.data.synthetic import SyntheticConfig, SyntheticVideo
from glus.data.synthetic.candidates import MOTION
from glus.data.synthetic.source import DATASET, Reading, draw_video, texts
from glus.data.transforms import clip_image, sam_image
from glus.errors import InputError
from glus.text.tokenizer import GlusTokenizer
from glus.training.batches import draw_row
from glus.training.pretraining.facts import (
    UNKNOWN,
    cell_shares,
    claims,
    fitting,
    hint,
    looks,
    no_hint,
    outlines,
    per_cell,
    shown,
)

WITHHELD, MISLEADING = 0.2, 0.07
"""Chance that a later frame's hint is kept back, or points at another object: what memory is for."""


@dataclass(frozen=True)
class PretrainingConfig:
    """What a pretraining sample holds.

    Attributes:
        sentences: expressions about one frame, all after the same images.
        objects: masks asked for in the mask frames.
        mask_frames: frames of the mask side; one means no memory.
        looks_only: share of the hints at one object that give only its looks: the mask decoder has to search.
        motion: ask for what moves how, too; a single frame cannot answer that.
        expressions: "blind" hides them (`glus.data.synthetic.source.NO_SENTENCE`).
    """

    sentences: int = 16
    objects: int = 5
    mask_frames: int = 1
    looks_only: float = 0.25
    context_frames: int = 4
    expressions: Reading = "read"
    motion: bool = True
    video: SyntheticConfig = dataclasses.field(default_factory=lambda: SyntheticConfig(max_sentences=24))

    def __post_init__(self) -> None:
        for name in ("sentences", "objects", "mask_frames", "context_frames"):
            least = 0 if name == "context_frames" else 1
            if getattr(self, name) < least:
                raise InputError(f"pretraining.{name} must be at least {least}, found {getattr(self, name)}")


@dataclass(frozen=True)
class PretrainingSample:
    """N cells per frame, P patches of the CLIP tower per frame, D numbers per hint (see `facts`).

    Attributes:
        clip_pixels: (C + 1, 3, S, S) context frames, then the query frame.
        owners: (C + 1, N) number of the object each cell shows, -1 for none.
        patch_owners: (C + 1, P) the same of patches.
        outlines: (C + 1, P, OUTLINE^2) share of the parts of each patch that any object covers.
        looks: (C + 1, N, 4) what each cell shows, `UNKNOWN` where nothing.
        claims: (N, claims) verdicts on what each cell of the query frame shows.
        rows: K conversations of one round, cut before [SEG]; alike up to their last image.
        hints: (K, D) the objects meant, in the query frame.
        nouns: (K, 2, N) share of each cell of the query frame taken by the objects that the noun fits, claim or
            no claim, and by the second object spoken of.
        sam_pixels: (Q, 3, S', S') mask frames.
        mask_hints: (E, Q, D) imperfect hints at the objects of `masks`.
        masks: (E, Q, H, W) of 0 and 1.
    """

    video: str
    clip_pixels: torch.Tensor
    owners: torch.Tensor
    patch_owners: torch.Tensor
    outlines: torch.Tensor
    looks: torch.Tensor
    claims: torch.Tensor
    rows: tuple[tuple[int, ...], ...]
    hints: torch.Tensor
    nouns: torch.Tensor
    sam_pixels: torch.Tensor
    mask_hints: torch.Tensor
    masks: torch.Tensor
    dataset: str = DATASET


class PretrainingSet:
    """Samples by number; a pure function of (seed, number)."""

    def __init__(self, config: PretrainingConfig, model: ModelConfig, tokenizer: GlusTokenizer, seed: int) -> None:
        side = int(model.vision.tokens_per_image**0.5)
        if side * side != model.vision.tokens_per_image or model.behaviour.token_pooling != "grid":
            raise InputError("pretraining needs image tokens on a square grid: behaviour token_pooling: grid")
        if model.behaviour.clip_view != "squash":
            raise InputError("pretraining needs image tokens that cover the frame: behaviour clip_view: squash")
        self.config, self.model, self.tokenizer, self.seed, self.side = config, model, tokenizer, seed, side

    def __getitem__(self, number: int) -> PretrainingSample:
        rng = np.random.default_rng([self.seed, number])
        name, video = draw_video(rng, self.config.video)
        return PretrainingSample(name, **self._language_side(video, rng), **self._mask_side(video, rng))

    def _language_side(self, video: SyntheticVideo, rng: np.random.Generator) -> dict:
        # Without motion "initially" is all that is said of time: the first frame has to be the one shown.
        query = int(rng.integers(len(video.frames))) if self.config.motion else 0
        frames = [*context_indices(rng, len(video.frames), self.config.context_frames), query]
        look = looks(video)
        owners = [shown(video, frame, self.side) for frame in frames]
        said = [s for s in video.sentences if self.config.motion or s.kind != MOTION] or video.sentences
        count, wanted = len(said), self.config.sentences
        # A video with less to say repeats itself in other templates, so that batches stay rectangular.
        chosen = [*rng.permutation(count)[:wanted], *rng.integers(count, size=max(0, wanted - count))]
        sentences = [said[int(i)] for i in chosen]
        hints = [
            hint(video.target(s)[query], self.side, look[s.targets[0]] if len(s.targets) == 1 else None)
            for s in sentences
        ]
        nouns = [
            [_cells_of(video, fitting(video, n), query, self.side) for n in (s.noun, s.other)] for s in sentences
        ]
        size, view = self.model.vision.image_size, self.model.behaviour.clip_view
        patches = size // self.model.vision.patch_size
        asked = (1, self.config.context_frames, self.tokenizer, self.model.behaviour)
        rows = [draw_row(text, *asked, rng) for text in texts(sentences, self.config.expressions)]
        return {
            "clip_pixels": torch.stack([clip_image(video.frames[frame], size, view) for frame in frames]),
            "owners": torch.from_numpy(np.stack(owners)),
            "patch_owners": torch.from_numpy(np.stack([shown(video, frame, patches) for frame in frames])),
            "outlines": torch.from_numpy(np.stack([outlines(video, frame, patches) for frame in frames])),
            "looks": torch.from_numpy(np.stack([per_cell(look, owner, UNKNOWN) for owner in owners])),
            "claims": torch.from_numpy(per_cell(claims(video), owners[-1], 0)),
            "rows": tuple(tuple(ids[: ids.index(self.tokenizer.seg_id)]) for ids in rows),
            "hints": torch.from_numpy(np.stack(hints)),
            "nouns": torch.from_numpy(np.array(nouns, np.float32)),
        }

    def _mask_side(self, video: SyntheticVideo, rng: np.random.Generator) -> dict:
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
        return {
            "sam_pixels": torch.stack([sam_image(video.frames[frame], size) for frame in frames]),
            "mask_hints": torch.from_numpy(hints.astype(np.float32)),
            "masks": torch.from_numpy(masks.astype(np.uint8)),
        }

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
            return no_hint(self.side)
        if fate < WITHHELD + MISLEADING:
            mask, look = video.masks[int(rng.integers(len(video.masks))), frame], None
        shift = rng.normal(0, 0.02 * min(mask.shape), 2).round().astype(int)
        told = hint(np.roll(mask, shift, (0, 1)), self.side, None if rng.random() < 0.3 else look)
        cells = self.side**2
        if look is not None and rng.random() < self.config.looks_only:
            searched = hint(mask, self.side, look)
            searched[:cells] = 0
            return searched
        told[:cells] = told[:cells] * rng.uniform(0.7, 1.1) + rng.normal(0, 0.03, cells)
        return told


def _cells_of(video: SyntheticVideo, objects: list[int], frame: int, side: int) -> NDArray[np.float32]:
    """(side^2,) share of each cell that some objects cover in a frame, 0..1."""
    return cell_shares(np.asarray(video.masks[objects, frame].any(axis=0))[None], side).ravel()
