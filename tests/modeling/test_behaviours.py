"""Every switch of `Behaviour`: its default, its place in the presets, and that it changes what it should.

One test per field, named after it; `test_every_field_is_covered` holds that together. Rows C1-C12 and D-numbers
are those of reference glus.md, sections 0 and 9.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tiny import EXPRESSIONS, tiny_clip, tiny_glus, tiny_tokenizer, traces

from glus.api import GLUS
from glus.config import Behaviour, InferenceConfig
from glus.data.transforms import clip_image
from glus.errors import InputError
from glus.inference.queries import Dialog
from glus.inference.reference import StepTrace, clip_features
from glus.modeling.checkpoints import load_state
from glus.modeling.mask_decoder import ABSENT_LOGIT, STABILITY_THRESHOLD, MaskOutput
from glus.text.prompts import QUESTIONS, window_prompt
from glus.video import open_frames

DEFAULTS = {
    "strip_around_added_tokens": True,
    "lower_case": True,
    "strip_period": True,
    "answer_trailing_space": True,
    "token_pooling": "consecutive",
    "clip_view": "centre",
    "memory_features": "conditioned",
    "memory_temporal_encoding": False,
    "object_pointers": False,
    "conditioning_frame": False,
    "object_score_gating": False,
    "stability_fallback": True,
    "fp32_islands": True,
    "reset_memory_gamma": False,
    "seg_decision": "argmax",
}
CLIP = tiny_clip(7)
LOWER = [torch.bfloat16, torch.float16]


def test_every_field_is_covered() -> None:
    names = [f.name for f in dataclasses.fields(Behaviour)]
    assert set(names) == set(DEFAULTS)
    for name in names:
        assert callable(globals().get(f"test_{name}")), f"no test of the switch {name}"


def test_defaults_and_presets() -> None:
    assert dataclasses.asdict(Behaviour()) == DEFAULTS
    assert Behaviour.preset("corrected") == Behaviour()
    released = dataclasses.asdict(Behaviour.preset("released"))
    assert {k: v for k, v in released.items() if v != DEFAULTS[k]} == {
        "fp32_islands": False,  # C10, D52
        "reset_memory_gamma": True,  # C11, D7
    }
    with pytest.raises(InputError, match="unknown compat preset 'relesed'"):
        Behaviour.preset("relesed")
    with pytest.raises(InputError, match="memory_features must be one of"):
        Behaviour(memory_features="unconditioned")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def base() -> list[StepTrace]:
    return traces(tiny_glus(), CLIP)


def out(step: StepTrace) -> MaskOutput:
    assert step.output is not None
    return step.output


def changed(base: list[StepTrace], other: list[StepTrace], what: str) -> list[bool]:
    """Per frame: `ids`, `embedding` (the prompt), `embed` (the decoder's map), `mask` or `memory` differs."""
    pick = {
        "ids": lambda s: torch.tensor(s.input_ids),
        "embedding": lambda s: s.readout.embedding,
        "embed": lambda s: out(s).embed,
        "mask": lambda s: out(s).low_res,
        "memory": lambda s: s.memory.features,
    }[what]
    return [not torch.equal(pick(a), pick(b)) for a, b in zip(base, other, strict=True)]


def with_switch(**switch: Any) -> list[StepTrace]:
    return traces(tiny_glus(**switch), CLIP)


NEVER, ALWAYS, LATER = [False] * 7, [True] * 7, [False] + [True] * 6


# -- text ----------------------------------------------------------------------------------------------------


def test_strip_around_added_tokens(base: list[StepTrace]) -> None:
    """C1. The lone space that ends the prompt stays either way (C3)."""
    prompt = window_prompt("a dog", 2)
    stripped, kept = tiny_tokenizer().encode_with_images(prompt), tiny_tokenizer(False).encode_with_images(prompt)
    assert len(kept) > len(stripped)
    assert kept[-1] == stripped[-1] == tiny_tokenizer().encode(" ")[-1]
    assert changed(base, other := with_switch(strip_around_added_tokens=False), "embedding") == ALWAYS
    assert all(len(a.input_ids) < len(b.input_ids) for a, b in zip(base, other, strict=True))


def dialog(expression: str, **switch: Any) -> Dialog:
    glus = tiny_glus(**switch)
    return Dialog(glus.config, glus.tokenizer, expression, InferenceConfig())


def test_lower_case() -> None:
    """C2: inside the question only; the rest of the prompt keeps its case."""
    ids = tiny_tokenizer().encode_with_images
    assert dialog("The DOG").ids(1) == ids(window_prompt("the dog", 1))
    assert dialog("The DOG", lower_case=False).ids(1) == ids(window_prompt("The DOG", 1, lower=False))
    assert dialog("the dog", lower_case=False).ids(1) == dialog("The DOG").ids(1)
    assert "The DOG" in window_prompt("The DOG", 1, lower=False)
    assert "ASSISTANT" in window_prompt("The DOG", 1)


def test_strip_period() -> None:
    """C2: exactly one, at the very end only; the demo notebook keeps it."""
    assert dialog("a dog.").expression == "a dog"
    assert dialog("a dog..").expression == "a dog."
    assert dialog("a. dog. ").expression == "a. dog. "
    assert dialog("a dog.", strip_period=False).expression == "a dog."


def test_answer_trailing_space(base: list[StepTrace]) -> None:
    """C3, D8: the [SEG] embedding is the state of the lone space; without it, that of `is`."""
    other = with_switch(answer_trailing_space=False, seg_decision="always")
    for one, two in zip(base, other, strict=True):
        assert one.input_ids[:-1] == two.input_ids
    space = tiny_tokenizer().encode(" ")[-1]
    assert base[0].input_ids[-1] == space != other[0].input_ids[-1]
    assert changed(base, other, "embedding") == ALWAYS


def test_prompt_grammar_is_kept() -> None:
    """D45: the slips of the trained prompts are not repaired."""
    prompt = window_prompt("the dog", 1)
    assert "Please finished the following tasks on the context frames above." in prompt
    assert "segment the the dog in this frame" in prompt
    assert len(QUESTIONS) == 4


# -- images --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_token_pooling(base: list[StepTrace]) -> None:
    """C4: 4 row-major neighbours, not 2x2; both keep the count and the mean over all tokens."""
    vision = tiny_glus().model.vision
    patches = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    consecutive = vision.pool(patches)
    assert consecutive.shape == (2, 4, 16)
    for token in range(4):
        torch.testing.assert_close(consecutive[:, token], patches[:, 4 * token : 4 * token + 4].mean(1))
    vision.pooling = "grid"
    grid = vision.pool(patches)
    for token, corner in enumerate((0, 2, 8, 10)):
        square = patches[:, [corner, corner + 1, corner + 4, corner + 5]]
        torch.testing.assert_close(grid[:, token], square.mean(1))
    other = with_switch(token_pooling="grid")
    assert changed(base, other, "ids") == NEVER
    assert changed(base, other, "embedding") == ALWAYS


def test_clip_view(base: list[StepTrace]) -> None:
    """C5, D44: the LLM sees the centre crop; SAM-2 sees the whole frame whatever the view."""
    wide = np.zeros((40, 120, 3), dtype=np.uint8)
    wide[:, :20] = 255  # outside the centre crop
    plain = np.zeros_like(wide)
    assert torch.equal(clip_image(wide, 56), clip_image(plain, 56))
    for view in ("pad", "squash"):
        assert not torch.equal(clip_image(wide, 56, view), clip_image(plain, 56, view))  # type: ignore[arg-type]
        other = with_switch(clip_view=view)
        assert changed(base, other, "embedding") == ALWAYS
        assert not changed(base, other, "embed")[0]


# -- memory --------------------------------------------------------------------------------------------------


def test_memory_features(base: list[StepTrace]) -> None:
    """C6, D11: the encoder reads the conditioned map. Frame 0's map differs too: it holds `no_mem_embed`."""
    other = with_switch(memory_features="raw")
    assert changed(base, other, "embedding") == NEVER
    assert changed(base, other, "mask") == LATER
    assert changed(base, other, "memory") == ALWAYS
    glus = tiny_glus()
    for step in base[:2]:
        assert step.memory is not None
        features = clip_features(glus.model, open_frames(CLIP), InferenceConfig()).features(step.frame)
        again = glus.model.sam.encode_memory(features, out(step))
        assert torch.equal(again.features, step.memory.features)


def test_memory_temporal_encoding(base: list[StepTrace]) -> None:
    """C7, D11."""
    other = with_switch(memory_temporal_encoding=True)
    assert changed(base, other, "embedding") == NEVER
    assert changed(base, other, "embed") == LATER
    assert [s.recalled for s in base] == [s.recalled for s in other]


def test_order_of_memories_does_not_matter(base: list[StepTrace]) -> None:
    """C7: without temporal codes attention sees a set (1.8)."""
    for switch, same in ((False, True), (True, False)):
        sam = tiny_glus(memory_temporal_encoding=switch).model.sam
        glus = tiny_glus(memory_temporal_encoding=switch)
        bank = glus.model.new_bank(1)
        steps = traces(glus, CLIP)
        for step in steps[:4]:
            assert step.memory is not None
            bank.store(step.frame, step.memory)
        features = clip_features(glus.model, open_frames(CLIP), InferenceConfig()).features(4)
        recalls = bank.recall(4)
        turned = [dataclasses.replace(a, entry=b.entry) for a, b in zip(recalls, reversed(recalls), strict=True)]
        one, two = sam.condition(features, recalls, 1), sam.condition(features, turned, 1)
        assert torch.allclose(one, two, atol=1e-4) is same


@torch.inference_mode()
def test_object_pointers(base: list[StepTrace]) -> None:
    """C7, D11: pointer tokens join the keys; pointers come from the single mask's token and the object score."""
    other = with_switch(object_pointers=True)
    assert changed(base, other, "embedding") == NEVER
    assert changed(base, other, "embed") == LATER
    assert all(s.memory is not None and s.memory.pointer is None for s in base)
    sam = tiny_glus(object_pointers=True).model.sam
    presences = set()
    for step in other:
        assert step.memory is not None
        present = bool(out(step).object_score > 0)
        presences.add(present)
        wanted = sam.obj_ptr_proj(out(step).token) if present else sam.no_obj_ptr
        torch.testing.assert_close(step.memory.pointer, wanted)
    assert presences == {True, False}, "the clip no longer exercises both branches"


def test_conditioning_frame() -> None:
    """C7, D11: from the frame on that no longer reads frame 0 by itself."""
    clip = tiny_clip(26)
    one, two = traces(tiny_glus(), clip), traces(tiny_glus(conditioning_frame=True), clip)
    differs = [a.recalled != b.recalled for a, b in zip(one, two, strict=True)]
    first = differs.index(True)
    assert first == 20  # stride 3: (f - 2) // 3 * 3 - 15 > 0
    assert all(0 in s.recalled for s in two[1:])
    assert all(0 not in s.recalled for s in one[first:])
    assert changed(one, two, "embed")[:first] == [False] * first
    assert all(changed(one, two, "embed")[first:])


# -- decoding ------------------------------------------------------------------------------------------------


def test_object_score_gating(base: list[StepTrace]) -> None:
    """C7: where the score says absent, the mask is blank; elsewhere as before until memories differ."""
    other = with_switch(object_score_gating=True)
    absent = [bool(out(s).object_score <= 0) for s in other]
    assert {True, False} == set(absent), "the clip no longer exercises both branches"
    for step, gone in zip(other, absent, strict=True):
        assert bool((out(step).low_res == ABSENT_LOGIT).all()) is gone
    assert changed(base, other, "mask")[0] is absent[0]
    assert changed(base, other, "mask")[absent.index(True)]


@torch.inference_mode()
def test_stability_fallback() -> None:
    """C9, D47: in evaluation mode only, for unstable frames only, with the untrained IoU head choosing."""
    fallback, plain = tiny_glus(), tiny_glus(stability_fallback=False)
    features = fallback.model.encode_frame(torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    prompts = 2 * torch.randn(30, 32, generator=torch.Generator().manual_seed(0))

    def decode(glus: GLUS) -> MaskOutput:
        return glus.model.segment_frame(features, prompts, None, 0)

    one, two = decode(fallback), decode(plain)
    unstable = one.stability < STABILITY_THRESHOLD
    assert 0 < int(unstable.sum()) < len(prompts)
    differs = (one.low_res != two.low_res).flatten(1).any(1)
    assert torch.equal(differs, unstable)
    assert torch.equal(two.low_res[:, 0], two.candidates[:, 0])
    assert torch.equal(one.candidates, two.candidates)
    fallback.model.train()
    training = decode(fallback)
    assert torch.equal(training.low_res, two.low_res)
    assert torch.equal(training.iou, two.iou)


def cast(glus: GLUS, dtype: torch.dtype) -> GLUS:
    load_state(glus.model, {k: v.clone() for k, v in glus.model.state_dict().items()}, dtype)
    return glus


def test_fp32_islands(base: list[StepTrace]) -> None:
    """C10, D52: nothing changes in fp32; under a lower dtype the three islands are nearer to fp32."""
    other = with_switch(fp32_islands=False)
    for what in ("ids", "embedding", "embed", "mask", "memory"):
        assert changed(base, other, what) == NEVER
    for dtype in LOWER:
        kept, lowered = (cast(tiny_glus(fp32_islands=flag), dtype) for flag in (True, False))
        _islands(kept, lowered)


@torch.inference_mode()
def _islands(kept: GLUS, lowered: GLUS) -> None:
    dtype, sam = kept.model.dtype, kept.model.sam
    exact = cast(tiny_glus(), dtype)
    load_state(exact.model, {k: v.float() for k, v in kept.model.state_dict().items()}, torch.float32)
    # dense position code
    codes = [g.model.sam.dense_position() for g in (exact, kept, lowered)]
    assert codes[1].dtype == codes[2].dtype == dtype
    errors = [float((code.float() - codes[0]).abs().max()) for code in codes[1:]]
    assert errors[0] < errors[1] / 3
    # [SEG] arg-max
    states = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact_logits = states.float() @ kept.model.language.lm_head.weight.float().T
    assert torch.equal(kept.model.language.logits(states, fp32=True), exact_logits)
    assert kept.model.language.logits(states, fp32=False).dtype == dtype
    readouts = [
        g.model.read_window([[1, 2, 3]], torch.zeros(0, 4, 32, dtype=dtype)).logits.dtype for g in (kept, lowered)
    ]
    assert readouts == [torch.float32, dtype]
    # memory mask
    seen: list[torch.Tensor] = []
    for glus in (kept, lowered):
        features = glus.model.encode_frame(torch.zeros(1, 3, 256, 256))
        output = glus.model.segment_frame(features, torch.ones(1, 32, dtype=dtype), None, 0)
        output = dataclasses.replace(
            output, low_res=torch.linspace(-8, 8, 64 * 64, dtype=dtype).view(1, 1, 64, 64)
        )
        down = glus.model.sam.memory_encoder.mask_downsampler
        handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        glus.model.sam.encode_memory(features, output)
        handle.remove()
    size = sam.config.image_size
    logits = torch.nn.functional.interpolate(output.low_res.float(), (size, size), mode="bilinear")
    wanted = logits.sigmoid() * 20 - 10
    errors = [float((mask.float() - wanted).abs().mean()) for mask in seen]
    assert seen[0].dtype == seen[1].dtype == dtype
    assert errors[0] < errors[1] / 1.2


def test_reset_memory_gamma(base: list[StepTrace]) -> None:
    """C11, D7: as if both layer scales were 1e-6; the weights themselves are left alone."""
    switched = tiny_glus(reset_memory_gamma=True)
    before = {k: v.clone() for k, v in switched.model.state_dict().items()}
    other = traces(switched, CLIP)
    assert all(torch.equal(v, before[k]) for k, v in switched.model.state_dict().items())
    assert changed(base, other, "mask") == LATER
    assert changed(base, other, "memory") == ALWAYS
    emptied = tiny_glus()
    with torch.no_grad():
        for layer in emptied.model.sam.memory_encoder.fuser.layers:
            layer.gamma.fill_(1e-6)
    assert changed(other, traces(emptied, CLIP), "mask") == NEVER


def test_seg_decision() -> None:
    """D10, D53: without [SEG] as the next token the frame is blank and leaves a memory gap."""
    silent = tiny_glus(answers_seg=False)
    result = silent.segment(CLIP, EXPRESSIONS[:2])
    assert result.failed.all()
    assert not result.masks.any()
    assert not result.scores.any()
    steps = traces(silent, CLIP)
    assert all(s.memory is None and s.output is None and s.recalled == [] for s in steps)
    assert all(int(s.readout.next_token) != silent.tokenizer.seg_id for s in steps)
    forced = tiny_glus(answers_seg=False, seg_decision="always")
    result = forced.segment(CLIP, EXPRESSIONS[:2])
    assert not result.failed.any()
    assert result.masks.any()
    # Ids do not depend on failure: a failed round is re-fed with the ids of a successful one.
    assert [s.input_ids for s in steps] == [s.input_ids for s in traces(tiny_glus(), CLIP)]
