"""What the engine does not do twice, and what it does not keep (reference glus.md 10). Counts, no times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from test_engine import made_up, patched, sizes
from tiny import tiny_clip, tiny_glus

from glus.api import GLUS
from glus.config import InferenceConfig
from glus.inference import engine
from glus.inference.budget import MemoryBudget, Plan, feature_numbers, plan
from glus.inference.queries import Dialog, Query
from glus.modeling.glus import GLUSModel
from glus.modeling.mask_decoder import FrameFeatures, MaskOutput
from glus.modeling.memory import MemoryEntry
from glus.modeling.work import Waits, counted
from glus.video import open_frames

FRAMES, EXPRESSIONS = 60, 16


@pytest.fixture(scope="module")
def glus() -> GLUS:
    return tiny_glus()


class Counting:
    """A video that counts how often each frame is decoded."""

    def __init__(self, clip: np.ndarray) -> None:
        self._source = open_frames(clip)
        self.names, self.fps = self._source.names, self._source.fps
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        self.read.append(index)
        return self._source[index]


@contextmanager
def without_sam2(model: GLUSModel) -> Iterator[None]:
    """Only the calls of SAM-2's parts are counted here; the work itself would take minutes."""
    features = model.encode_frame(torch.zeros(1, 3, 256, 256))
    prompts = torch.zeros(1, model.config.sam2.hidden_size)
    with torch.inference_mode():
        output = model.segment_frame(features, prompts, None, 0)
        entry = model.sam.encode_memory(features, output)
    calls = model.sam.image_encoder, model.sam.memory_attention, model.sam.memory_encoder

    def tell(module: torch.nn.Module, *args: Any) -> None:
        for hook in module._forward_pre_hooks.values():
            hook(module, args)

    def encode(pixels: torch.Tensor) -> FrameFeatures:
        tell(calls[0], pixels)
        fine, middle = (part.expand(len(pixels), -1, -1, -1) for part in features.high_res)
        embed, position = (x.expand(len(pixels), -1, -1, -1) for x in (features.embed, features.position))
        return FrameFeatures((fine, middle), embed, position)

    def condition(given: FrameFeatures, memories: Sequence[Any], rows: int) -> torch.Tensor:
        if memories:
            tell(calls[1])
        return given.embed.expand(rows, -1, -1, -1)

    def decode(given: FrameFeatures, embed: torch.Tensor, prompts: torch.Tensor) -> MaskOutput:
        tell(model.sam.sam_mask_decoder.transformer)
        rows = len(prompts)
        fields = vars(output).items()
        return MaskOutput(**{k: v.expand(rows, *[-1] * (v.dim() - 1)) for k, v in fields})

    def remember(given: FrameFeatures, done: MaskOutput) -> MemoryEntry:
        tell(calls[2])
        rows = len(done.low_res)
        return MemoryEntry(entry.features.expand(rows, -1, -1, -1), entry.position.expand(rows, -1, -1, -1))

    with (
        patched(model, encode_frame=encode),
        patched(model.sam, condition=condition, decode=decode, encode_memory=remember),
    ):
        yield


def floor(glus: GLUS, queries: Sequence[Query], frames: int, config: InferenceConfig) -> tuple[int, int]:
    """Positions of all windows one by one, and the reference's least: what all begin with is read once."""
    dialogs = [Dialog(glus.config, glus.tokenizer, query.expression, config) for query in queries]
    per_image = glus.config.vision.tokens_per_image
    context, most = config.context_frames, config.query_frames

    def length(ids: list[int], images: int) -> int:
        return len(ids) + images * (per_image - 1)

    plain = sum(
        length(dialog.ids(rounds), context + rounds)
        for dialog in dialogs
        for rounds in (min(i + 1, most) for i in range(frames))
    )
    rows = [dialog.ids(1) for dialog in dialogs]
    images = [i for i, token in enumerate(rows[0]) if token < 0]
    text = images[context] - 1  # the mark before the query image counts as the window's own
    return plain, length(rows[0][:text], context) + plain - frames * len(queries) * length(rows[0][:text], context)


def test_nothing_is_done_twice(glus: GLUS) -> None:
    """T = 60, E = 16: each count at or under the floor of the reference."""
    config, queries = InferenceConfig(), made_up(0, FRAMES, EXPRESSIONS, False)
    source = Counting(tiny_clip(FRAMES))
    with without_sam2(glus.model), counted(glus.model) as seen, Waits() as waits:
        results = list(engine.segment_clip(glus.model, glus.tokenizer, source, queries, config))
    assert len(results) == FRAMES * EXPRESSIONS
    assert sorted(source.read) == list(range(FRAMES))
    plain, least = floor(glus, queries, FRAMES, config)
    positions, calls = seen.pop("llm_positions"), seen.pop("llm_calls")
    assert seen == {
        "clip_frames": FRAMES,
        "sam2_image_encodings": FRAMES,
        "lm_head_positions": FRAMES * EXPRESSIONS,
        "seg_head_positions": FRAMES * EXPRESSIONS,
        "mask_decoder_calls": FRAMES,
        "memory_attention_calls": FRAMES - 1,
        "memory_encoder_calls": FRAMES - 1,
    }
    assert calls < FRAMES * EXPRESSIONS
    assert plain / 3 < positions <= least  # padding included
    assert waits.count == 0  # values come in lists, a list for each chunk


def test_one_expression_is_read_at_the_floor(glus: GLUS) -> None:
    config, queries = InferenceConfig(), made_up(1, FRAMES, 1, False)
    with without_sam2(glus.model), counted(glus.model) as seen:
        list(engine.segment_clip(glus.model, glus.tokenizer, open_frames(tiny_clip(FRAMES)), queries, config))
    assert seen["llm_positions"] <= floor(glus, queries, FRAMES, config)[1]
    assert seen["lm_head_positions"] == seen["mask_decoder_calls"] == FRAMES


KEYS = [2, 5, 8]
MET = 8 + 9  # forward over frames 2..9, backward over 8..0


def work_with_key_frames(
    glus: GLUS, keys: Sequence[int], plan: Callable[..., Plan] = engine.plan
) -> dict[str, int]:
    """Of a clip of 10 frames; `decoded` is how often one was."""
    source = Counting(tiny_clip(10))
    queries = [Query("a dog", key) for key in keys]
    with without_sam2(glus.model), counted(glus.model) as seen, patched(engine, plan=plan):
        list(engine.segment_clip(glus.model, glus.tokenizer, source, queries, InferenceConfig()))
    return {**seen, "decoded": len(source.read)}


@pytest.mark.parametrize("keys", [[4], [9], KEYS, [0, 9]])
def test_frames_that_both_passes_meet_are_seen_once(glus: GLUS, keys: Sequence[int]) -> None:
    """A key frame is met in both; with several expressions, all frames between the first and the last one are."""
    seen = work_with_key_frames(glus, keys)
    assert seen["clip_frames"] == seen["sam2_image_encodings"] == seen["decoded"] == 10
    assert seen["mask_decoder_calls"] == (10 - min(keys)) + (max(keys) + 1)


def test_frames_that_memory_does_not_hold_are_seen_twice(glus: GLUS) -> None:
    """Context frames (1, 3, 6, 8) are always at hand as CLIP tokens."""
    none = work_with_key_frames(glus, KEYS, sizes(3, 100, 64, 0, 0))
    assert none["clip_frames"] == 10 + (MET - 10) - len({3, 6, 8})
    assert none["sam2_image_encodings"] == MET
    some = work_with_key_frames(glus, KEYS, sizes(3, 100, 64, 4, 2))
    assert some["clip_frames"] == 10 + len({7})  # tokens of 2, 3, 4, 5 are held
    assert some["sam2_image_encodings"] == MET - 2


def test_what_is_held_is_a_share_of_the_budget(glus: GLUS) -> None:
    def held(gib: float, twice: int) -> tuple[int, int]:
        found = plan(glus.model, MemoryBudget.of_gib(gib), 4, 300, 200, 10**4, twice)
        return found.tokens, found.features

    each = 4 * feature_numbers(glus.config)
    tokens, features = held(0.5, 10**6)
    assert features == 0 < tokens <= 2**27 / (4 * glus.config.vision.tokens_per_image * 32)
    assert held(0.5, 50) == (50, 50)
    tokens, features = held(0.01, 50)
    assert tokens == 50 > features > 0
    assert features * each <= 0.25 * 0.01 * 2**30
    assert held(0.5, 0) == (0, 0)
