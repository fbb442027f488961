"""Streams without an end, chunks that do not fit into memory, and what is kept meanwhile."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from test_engine import patched, sizes
from test_engine_work import without_sam2
from tiny import tiny_clip, tiny_config, tiny_glus

from glus.api import GLUS
from glus.config import InferenceConfig
from glus.errors import InputError
from glus.inference import engine
from glus.inference.budget import MemoryBudget, Ration, feature_numbers, free_host_memory, plan
from glus.inference.queries import Query
from glus.inference.selection import context_frames
from glus.inference.streams import RunningContext
from glus.modeling.work import LiveBytes
from glus.video import open_frames

TEXTS = ["the red square", "a dog that moves"]
CLIP = tiny_clip(9)


@pytest.fixture(scope="module")
def glus() -> GLUS:
    return tiny_glus()


def masks(steps: Iterator[Any]) -> torch.Tensor:
    return torch.stack([step.masks for step in steps])


# -- context of a stream ---------------------------------------------------------------------------------------


def test_given_context_frames_give_the_masks_of_the_file(glus: GLUS) -> None:
    """Nothing else of a file is known before its frames come."""
    wanted, shown = masks(glus.stream(CLIP, TEXTS)), [CLIP[i] for i in context_frames(len(CLIP))]
    for lookahead in (1, 4):
        stream = glus.stream(iter(CLIP), TEXTS, context=shown, lookahead=lookahead)
        assert torch.equal(masks(stream), wanted)


@pytest.mark.parametrize("policy", ["first", "reservoir"])
def test_a_stream_knows_its_past_only(glus: GLUS, policy: Any) -> None:
    """However far is looked ahead, and wherever it ends."""
    plain = masks(glus.stream(iter(CLIP), TEXTS, context=policy))
    assert torch.equal(masks(glus.stream(iter(CLIP), TEXTS, context=policy, lookahead=5)), plain)
    assert torch.equal(masks(glus.stream(iter(CLIP[:5]), TEXTS, context=policy)), plain[:5])
    assert plain.any()


def test_a_stream_without_an_end(glus: GLUS) -> None:
    frames = itertools.cycle(CLIP)
    steps = list(itertools.islice(glus.stream(frames, TEXTS[0]), 3))
    assert [(step.frame, step.name) for step in steps] == [(i, f"{i:05d}") for i in range(3)]
    assert np.array_equal(next(frames), CLIP[3])  # not one frame too many was taken


def test_no_context_frames_at_all(glus: GLUS) -> None:
    config = InferenceConfig(context_frames=0)
    assert torch.equal(
        masks(glus.stream(iter(CLIP[:4]), TEXTS, config=config)),
        masks(glus.stream(CLIP[:4], TEXTS, config=config)),
    )
    assert list(glus.stream(iter([]), TEXTS)) == []


def numbers(context: RunningContext) -> list[int]:
    return [int(tokens) for tokens in context.tokens().flatten()]


def held(context: RunningContext, frames: int) -> list[int]:
    for number in range(frames):
        context.offer(torch.tensor([[float(number)]]))
    return numbers(context)


def test_running_context() -> None:
    assert [held(RunningContext(4, "first"), n) for n in (1, 2, 3, 4, 50)] == [
        [0, 0, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]
    drawn = [held(RunningContext(4, "reservoir", seed), 100) for seed in range(300)]
    assert all(one == sorted(set(one)) for one in drawn)
    counts = np.bincount(np.ravel(drawn), minlength=100).reshape(10, 10).sum(axis=1)
    assert counts.min() > 80  # 120 each, were they exactly even
    assert held(RunningContext(4, "reservoir"), 100) == held(RunningContext(4, "reservoir"), 100)


@pytest.mark.parametrize(
    ("frames", "options", "words"),
    [
        ([CLIP[0], CLIP[0][:20]], {}, "frame 1 of the stream is 56x20, others are 56x40"),
        ([CLIP[0].astype(float)], {}, r"frame 0 of the stream must be uint8 \[height, width, 3\], found float64"),
        (["a.png"], {}, "frame 0 of the stream must be uint8 .* found str"),
        ([CLIP[0]], {"context": "random"}, "unknown context policy 'random'"),
        ([CLIP[0]], {"context": [CLIP[0]]}, "1 context frames were given; the model is asked with 4"),
        ([CLIP[0]], {"lookahead": 0}, "lookahead must be at least 1"),
        ([CLIP[0]], {"memory_budget": 0.0}, "memory_budget must be above 0"),
    ],
)
def test_bad_streams(glus: GLUS, frames: list[Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        list(glus.stream(iter(frames), TEXTS, **options))


# -- memory ----------------------------------------------------------------------------------------------------


def test_what_is_kept_does_not_grow_with_the_stream(glus: GLUS) -> None:
    """150 frames against 60, where a tenth of the windows is not answered; context frames do not change."""
    answers = itertools.cycle([True] * 9 + [False])

    def accepts(readout: Any) -> torch.Tensor:
        return torch.tensor([next(answers) for _ in readout.hidden])

    frames, found = (CLIP[i % 9] for i in range(150)), {}
    with without_sam2(glus.model), patched(glus.model, accepts=accepts), LiveBytes() as live:
        for step in glus.stream(frames, TEXTS[0], context="first"):
            found[step.frame] = live.now, live.most
    assert found[149] == found[59]
    assert 0 < found[59][0] < found[59][1]


def test_peak_does_not_grow_with_the_video(glus: GLUS) -> None:
    """All tensors together at their largest moment, SAM-2's real ones included: 72 frames against 24.

    Chunks are as long as the memory's stride, so that every chunk after the first ones is like every other.
    """

    def peak(frames: int) -> int:
        queries, clip = [Query(text) for text in TEXTS], open_frames(tiny_clip(frames))
        with patched(engine, plan=sizes(3, 100, 64)), LiveBytes() as live:
            for _ in engine.segment_clip(glus.model, glus.tokenizer, clip, queries, InferenceConfig()):
                pass
        return live.most

    short, long = peak(24), peak(72)
    assert 3 * 4 * feature_numbers(glus.config) < long <= 1.001 * short


class Short:
    """Work that memory suffices for up to a number of things at a time."""

    def __init__(self, most: int, error: RuntimeError) -> None:
        self.most, self.error = most, error
        self.tried: list[int] = []

    def __call__(self, things: Sequence[int]) -> list[int]:
        self.tried.append(len(things))
        if len(things) > self.most:
            raise self.error
        return [10 * thing for thing in things]


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_portions_are_halved_when_memory_runs_out(error: RuntimeError, caplog: pytest.LogCaptureFixture) -> None:
    ration, work = Ration("window", 20), Short(4, error)
    with caplog.at_level(logging.WARNING):
        assert list(itertools.chain(*ration.run(list(range(13)), work))) == [10 * i for i in range(13)]
    assert work.tried == [13, 6, 3, 3, 3, 3, 1]
    assert "out of memory with 13 windows at once; going on with 6" in caplog.text
    assert ration.size == 3  # for good
    with pytest.raises(RuntimeError, match=r"out of memory with one window at a time.*--precision") as raised:
        Ration("window", 2).run([1, 2], Short(0, error))
    assert type(raised.value) is type(error)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        ration.run([1, 2], Short(0, RuntimeError("shapes do not fit")))


def test_running_out_of_memory_changes_no_mask(glus: GLUS, caplog: pytest.LogCaptureFixture) -> None:
    """In every part of the work, at whatever frame."""
    frames, queries = open_frames(CLIP[:6]), [Query(text, key) for text, key in zip(TEXTS, (0, 3), strict=True)]

    def results() -> list[tuple[int, int, int, bytes]]:
        with patched(engine, plan=sizes(4, 100, 64)):
            found = engine.segment_clip(glus.model, glus.tokenizer, frames, queries, InferenceConfig())
            return [(row, r.frame, r.pass_id, r.mask.tobytes()) for row, r in found]

    wanted = results()
    for name in ("encode_clip", "encode_frame", "readout"):
        real, left = getattr(glus.model, name), [1, 1]

        def tight(batch: torch.Tensor, real: Any = real, left: list[int] = left) -> Any:
            if len(batch) > 1 and left:
                left.pop()
                raise NO_MEMORY[1]
            return real(batch)

        caplog.clear()
        with patched(glus.model, **{name: tight}):
            assert results() == wanted
        assert "out of memory" in caplog.text
    real_decode, left = glus.model.sam.decode, [1]

    def decode(*args: Any) -> Any:
        if len(args[2]) > 1 and left:
            left.pop()
            raise NO_MEMORY[0]
        return real_decode(*args)

    with patched(glus.model.sam, decode=decode):
        assert results() == wanted
    assert not left


def test_chunks_follow_the_budget(glus: GLUS) -> None:
    def at(gib: float, expressions: int = 4, pixels: int = 10**6) -> Any:
        return plan(glus.model, MemoryBudget.of_gib(gib), expressions, 300, 200, pixels, 0)

    tiny, small, large = at(1e-6), at(0.2), at(64)
    assert (tiny.frames, tiny.windows, tiny.rows) == (1, 1, 1)
    assert small.rows < large.rows
    assert large.frames * 4 <= large.windows
    assert at(64, expressions=100).frames == 1
    big = tiny_glus(tiny_config(512)).model
    assert plan(big, MemoryBudget.of_gib(0.2), 4, 300, 200, 10**6, 0).rows < small.rows
    assert 0 < MemoryBudget.of_free_memory(torch.device("cpu")).bytes < free_host_memory()
