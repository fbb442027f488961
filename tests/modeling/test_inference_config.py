"""Every field of `InferenceConfig`: its default and that it changes what it should, one test per field."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import EXPRESSIONS, tiny_clip, tiny_glus, tiny_tokenizer, traces

from glus.config import InferenceConfig
from glus.errors import InputError
from glus.inference.reference import StepTrace
from glus.inference.selection import context_frames as choose
from glus.text.prompts import clean_expression, window_prompt
from glus.text.tokenizer import IMAGE_INDEX

DEFAULTS = {
    "context_frames": 4,
    "query_frames": 4,
    "mem_stride": 3,
    "use_memory": True,
    "context_choice": "middle",
    "question": 0,
}
CLIP = tiny_clip(9)


@pytest.fixture(scope="module")
def base() -> list[StepTrace]:
    return traces(tiny_glus(), CLIP)


def run(config: InferenceConfig) -> list[StepTrace]:
    return traces(tiny_glus(), CLIP, config=config)


def same_masks(one: list[StepTrace], other: list[StepTrace]) -> list[bool]:
    pairs = zip(one, other, strict=True)
    return [
        a.output is not None and b.output is not None and torch.equal(a.output.low_res, b.output.low_res)
        for a, b in pairs
    ]


def test_every_field_is_covered() -> None:
    assert dataclasses.asdict(InferenceConfig()) == DEFAULTS
    for name in DEFAULTS:
        assert callable(globals().get(f"test_{name}")), f"no test of {name}"


@pytest.mark.parametrize("count", [1, 2, 6])
def test_context_frames(base: list[StepTrace], count: int) -> None:
    """C12: fixed for the whole pass, and the prompt holds as many images."""
    steps = run(InferenceConfig(context_frames=count))
    assert {tuple(s.window_frames[:count]) for s in steps} == {tuple(choose(9, count))}
    for step in steps:
        assert step.input_ids.count(IMAGE_INDEX) == len(step.window_frames)
    assert not any(same_masks(base, steps))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_query_frames(base: list[StepTrace], count: int) -> None:
    """The window holds the latest frames, the current one last."""
    steps = run(InferenceConfig(query_frames=count))
    for index, step in enumerate(steps):
        assert step.window_frames[4:] == list(range(max(0, index - count + 1), index + 1))
    same = min(4, count)
    assert same_masks(base, steps)[:same] == [True] * same
    assert not same_masks(base, steps)[same]


def test_mem_stride(base: list[StepTrace]) -> None:
    """C8, D12: 3 by default; 1, as in training, differs from frame 3 on (section 1.8)."""
    steps = run(InferenceConfig(mem_stride=1))
    assert [s.recalled for s in steps] == [list(range(max(0, i - 7), i)) for i in range(9)]
    assert base[8].recalled == [0, 3, 6, 7]
    assert same_masks(base, steps) == [True] * 3 + [False] * 6


def test_use_memory(base: list[StepTrace]) -> None:
    steps = run(InferenceConfig(use_memory=False))
    assert all(s.memory is None and s.recalled == [] for s in steps)
    assert same_masks(base, steps) == [True] + [False] * 8
    for one, other in zip(base, steps, strict=True):
        assert torch.equal(one.readout.embedding, other.readout.embedding)


def test_context_choice(base: list[StepTrace]) -> None:
    """C12: `ceil(T/4) // 2` into each of four equal segments, or linspace as in the demo notebook."""
    steps = run(InferenceConfig(context_choice="linspace"))
    assert base[0].window_frames[:4] == [1, 3, 5, 7]
    assert steps[0].window_frames[:4] == [0, 2, 5, 8]
    assert not any(same_masks(base, steps))


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_question(number: int) -> None:
    steps = run(InferenceConfig(question=number))
    text = clean_expression(EXPRESSIONS[0])
    for rounds, step in enumerate(steps[:4], start=1):
        assert step.input_ids == tiny_tokenizer().encode_with_images(window_prompt(text, rounds, question=number))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"context_frames": -1}, "context_frames must be at least 0"),
        ({"query_frames": -1}, "query_frames must be at least 1"),
        ({"mem_stride": 0}, "mem_stride must be at least 1"),
        ({"question": 4}, r"question must be 0\.\.3"),
        ({"context_choice": "random"}, "context_choice must be one of"),
    ],
)
def test_values_are_checked(values: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        InferenceConfig(**values)


def test_alone_a_frame_depends_on_no_other() -> None:
    """Without context, history and memory: the control that shows what motion is worth."""
    alone = InferenceConfig(context_frames=0, query_frames=1, use_memory=False)
    glus = tiny_glus()
    whole = traces(glus, CLIP, config=alone)
    assert {len(step.window_frames) for step in whole} == {1}
    assert all(step.input_ids.count(IMAGE_INDEX) == 1 for step in whole)
    for index, step in enumerate(whole):
        (single,) = traces(glus, CLIP[index : index + 1], config=alone)
        assert same_masks([step], [single]) == [True]
