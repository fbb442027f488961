"""The training forward: work done, what has a graph, modes, precision, checks (reference glus.md 1.5-1.11)."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_glus
from training_samples import tiny_sample
from transformers import masking_utils

from glus.api import GLUS
from glus.data.records import Record
from glus.modeling.work import counted
from glus.text.tokenizer import IMAGE_INDEX
from glus.training.contrastive import ObjectContrastiveLoss, ObjectTable
from glus.training.forward import FrameTrace, TrainingForward, TrainingOutput, TrainingSample
from glus.training.objective import ContrastiveConfig, LossRules, Objective

RELEASED = Objective(rules=LossRules.preset("released"))
FROZEN = ("vision.tower.", "sam.image_encoder.", "sam.memory_", "sam.sam_mask_decoder.conv_s", "sam.no_mem_embed")


@pytest.fixture
def glus() -> GLUS:
    """Without dropout, so that runs can be compared."""
    built = tiny_glus(tiny_config(memory_dropout=0.0))
    built.model.train()
    return built


def test_no_work_is_repeated_per_expression(glus: GLUS) -> None:
    """D28, D29: with 3 expressions CLIP sees each frame once and SAM-2 each query frame once, in one LLM call
    whose head is asked at [SEG] alone."""
    batch = [tiny_sample(glus), tiny_sample(glus, expressions=2, seed=1)]
    with counted(glus.model) as seen:
        output = TrainingForward(glus.model)(batch)
    positions, calls = seen["llm_positions"], seen["llm_calls"]
    assert (seen["clip_frames"], seen["sam2_image_encodings"]) == (10, 6)
    assert seen["memory_attention_calls"] == seen["memory_encoder_calls"] == 4
    assert seen["lm_head_positions"] == seen["seg_head_positions"] == 15
    # Context frames and first query frame are read once per sample: their text and 3 images of 4 tokens.
    rows = [row for sample in batch for row in sample.rows]
    shared = next(i for i in range(len(rows[0])) if any(row[i] != rows[0][i] for row in rows))
    prefix = shared + 3 * list(rows[0][:shared]).count(IMAGE_INDEX)
    assert list(rows[0][:shared]).count(IMAGE_INDEX) == 3
    assert calls == 2
    assert positions == 2 * prefix + 5 * (max(output.layout.lengths) - prefix)


def test_sharing_changes_nothing(glus: GLUS) -> None:
    """Also where rows are alike up to an answer, as those of a sentence-blind control are."""
    sample = tiny_sample(glus)
    alike = dataclasses.replace(sample, rows=(sample.rows[0],) * len(sample.rows))
    for batch in ([sample, tiny_sample(glus, expressions=2, seed=1)], [alike]):
        shared, _ = TrainingForward(glus.model).read_segs(batch)
        plain, _ = TrainingForward(glus.model).read_segs(
            [one for sample in batch for one in sample.per_expression()]
        )
        torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-5)


def losses_and_gradients(
    step: TrainingForward, batch: list[TrainingSample]
) -> tuple[TrainingOutput, dict[str, Any]]:
    step.zero_grad()
    output = step(batch)
    output.losses.total.backward()
    return output, {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}


def test_sharing_frames_changes_nothing(glus: GLUS) -> None:
    """Losses, masks and gradients equal those of the expressions on their own, un-padded and one by one."""
    sample = tiny_sample(glus)
    assert len({len(row) for row in sample.rows}) > 1
    step = TrainingForward(glus.model)
    together, gradients = losses_and_gradients(step, [sample])
    alone = [losses_and_gradients(step, [one]) for one in sample.per_expression()]
    for name in ("ce", "bce", "dice", "total"):
        mean = sum(getattr(output.losses, name).item() for output, _ in alone) / 3
        assert getattr(together.losses, name).item() == pytest.approx(mean, rel=1e-5), name
    for row, (output, _) in enumerate(alone):
        torch.testing.assert_close(together.low_res[0][row], output.low_res[0][0], rtol=1e-4, atol=1e-4)
    assert all(set(own) == set(gradients) for _, own in alone)
    for name, gradient in gradients.items():
        mean = sum(own[name] for _, own in alone) / 3
        # The floor is for biases whose gradient is zero but for rounding (README of the goldens, section 3).
        tolerance = max(1e-3 * float(gradient.abs().max()), 1e-4)
        torch.testing.assert_close(gradient, mean, rtol=0, atol=tolerance, msg=name)
    largest = {name: float(gradient.abs().max()) for name, gradient in gradients.items()}
    assert sum(value > 0.1 for value in largest.values()) > len(largest) / 2


def test_samples_of_several_sizes_share_a_batch(glus: GLUS) -> None:
    samples = [tiny_sample(glus, 1, 2, 3), tiny_sample(glus, 2, 0, 2, seed=1), tiny_sample(glus, 3, 1, 1, seed=2)]
    step = TrainingForward(glus.model)
    together = step(samples)
    assert [tuple(low.shape[:2]) for low in together.low_res] == [(1, 3), (2, 2), (3, 1)]
    assert together.seg_embedding.shape[0] == 3 + 4 + 3
    for low, sample in zip(together.low_res, samples, strict=True):
        torch.testing.assert_close(low, step([sample]).low_res[0], rtol=1e-4, atol=1e-4)


def test_frozen_parts_have_no_graph(glus: GLUS) -> None:
    """1.11, D30: as models are built, CLIP and SAM-2's features are frozen."""
    traces: list[FrameTrace] = []
    step = TrainingForward(glus.model)
    step([tiny_sample(glus)], traces.append).losses.total.backward()
    for trace in traces:
        tensors = [*trace.features.high_res, trace.features.embed, trace.output.embed]
        if trace.memory is not None:
            tensors += [trace.memory.features, trace.memory.position]
        assert not any(tensor.requires_grad for tensor in tensors)
        assert trace.output.low_res.requires_grad
    assert [trace.memory is None for trace in traces] == [False, False, True]
    for name, parameter in glus.model.named_parameters():
        if name.startswith(FROZEN):
            assert parameter.grad is None, name
    for name in ("vision.projector.weight", "seg_head.0.weight", "language.lm_head.weight"):
        gradient = glus.model.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().sum() > 0, name


def test_parts_that_train_get_gradients_through_the_memory_too(glus: GLUS) -> None:
    """A model trained from nothing: CLIP, the image encoder and the memory learn from the masks."""
    glus.model.requires_grad_(True)
    traces: list[FrameTrace] = []
    TrainingForward(glus.model)([tiny_sample(glus)], traces.append).losses.total.backward()
    assert all(trace.memory.features.requires_grad for trace in traces if trace.memory is not None)
    for name in (
        "vision.tower.embeddings.patch_embedding.weight",
        "sam.image_encoder.trunk.patch_embed.proj.weight",
        "sam.memory_attention.layers.0.cross_attn_image.k_proj.weight",
        "sam.memory_encoder.fuser.layers.0.dwconv.weight",
        "sam.no_mem_embed",
    ):
        gradient = glus.model.get_parameter(name).grad
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name


def test_evaluation_mode_gives_the_same_losses(glus: GLUS) -> None:
    """D33: the original's loss path reads the last row of the batch as if it were the last layer."""
    batch = [tiny_sample(glus), tiny_sample(glus, seed=1)]
    step = TrainingForward(glus.model)
    trained = step(batch)
    behaviour = dataclasses.replace(glus.model.config.behaviour, stability_fallback=False)
    with torch.no_grad(), glus.model.using(behaviour):
        evaluated = step.eval()(batch)
    for ours, expected in zip(
        evaluated.losses.detached().values(), trained.losses.detached().values(), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    assert not evaluated.losses.total.requires_grad


def test_single_mask_in_training_fallback_in_evaluation(glus: GLUS) -> None:
    """C9: some of these frames are unstable, and only evaluation replaces their mask."""
    batch = [tiny_sample(glus, seed=seed) for seed in range(3)]
    step = TrainingForward(glus.model)
    replaced = []
    for training in (True, False):
        traces: list[FrameTrace] = []
        with torch.no_grad():
            step.train(training)(batch, traces.append)
        replaced.append(sum(int((t.output.low_res[:, 0] != t.output.candidates[:, 0]).any()) for t in traces))
    assert replaced[0] == 0 < replaced[1]


def test_memory_attention_drops_out_in_training() -> None:
    """1.8: although it runs without gradient. Position 0 reads no memory, so it is not touched."""
    glus = tiny_glus(tiny_config(memory_dropout=0.1))
    step, batch = TrainingForward(glus.model), [tiny_sample(glus)]

    def logits(training: bool, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return step.train(training)(batch).low_res[0]

    first, second = logits(True, 0), logits(True, 1)
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.equal(first[:, 1], second[:, 1])
    assert torch.equal(first, logits(True, 0))
    assert torch.equal(logits(False, 0), logits(False, 1))


def test_without_memory_frames_are_independent(glus: GLUS) -> None:
    sample = tiny_sample(glus)
    step = TrainingForward(glus.model, use_memory=False)
    with counted(glus.model) as seen:
        plain = step([sample]).low_res[0]
    assert seen["memory_attention_calls"] == seen["memory_encoder_calls"] == 0
    first_black = dataclasses.replace(sample, sam_pixels=sample.sam_pixels.clone())
    first_black.sam_pixels[0] = 0
    changed = step([first_black]).low_res[0]
    assert not torch.equal(changed[:, 0], plain[:, 0])
    assert torch.equal(changed[:, 1:], plain[:, 1:])
    remembered = TrainingForward(glus.model)
    assert not torch.equal(remembered([first_black]).low_res[0][:, 1], remembered([sample]).low_res[0][:, 1])


def test_bf16(glus: GLUS) -> None:
    """The whole model in bf16: mask losses stay fp32, all terms near those of fp32, gradients finite."""
    batch = [tiny_sample(glus)]
    exact = TrainingForward(glus.model)(batch).losses.detached()
    glus.model.to(torch.bfloat16).finish_loading()
    for objective in (Objective(), RELEASED):
        output, gradients = losses_and_gradients(TrainingForward(glus.model, objective), batch)
        assert output.losses.bce.dtype == output.losses.dice.dtype == torch.float32
        assert (output.losses.ce.dtype == torch.float32) == objective.rules.fp32
        for name, value in output.losses.detached().items():
            assert float(value) == pytest.approx(float(exact[name]), rel=0.05), name
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_autocast(glus: GLUS) -> None:
    batch = [tiny_sample(glus)]
    exact = TrainingForward(glus.model)(batch).losses.detached()
    with torch.autocast("cpu", torch.bfloat16):
        output = TrainingForward(glus.model)(batch)
    output.losses.total.backward()
    for name, value in output.losses.detached().items():
        assert float(value) == pytest.approx(float(exact[name]), rel=0.05), name


def contrastive_for(sample: TrainingSample) -> ObjectContrastiveLoss:
    """Expressions 0 and 1 mean the same object, 2 another."""
    records = [
        Record(sample.dataset, sample.video, exp, "x", sample.frames, Path(), ("7",) if exp != "2" else ("8",))
        for exp in sample.exp_ids
    ]
    table = ObjectTable({sample.dataset: lambda: records})
    return ObjectContrastiveLoss(table, random.Random(0), ContrastiveConfig(64, negatives=3))


def test_contrastive_term(glus: GLUS) -> None:
    sample = tiny_sample(glus)
    step = TrainingForward(glus.model, contrastive=contrastive_for(sample))
    output = step([sample])
    assert output.contrastive is not None
    assert output.contrastive.rows == [0, 1, 2, 3, 4, 5]
    losses = output.losses
    assert losses.contrastive is not None
    torch.testing.assert_close(losses.contrastive, 0.1 * output.contrastive.losses.mean())  # type: ignore[union-attr]
    torch.testing.assert_close(losses.total, losses.ce + losses.mask + losses.contrastive)
    assert step.contrastive is not None
    assert step.contrastive.bank.keys == sample.keys
    torch.testing.assert_close(step.contrastive.bank.tokens, output.seg_embedding.detach())


def test_the_host_never_waits(glus: GLUS, monkeypatch: pytest.MonkeyPatch) -> None:
    """D23: meta tensors have no values, so any look at one from the host would raise.

    One look a step is left, inside transformers, before the language model starts, and only where no rows share
    a beginning.
    """
    looks = []
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda ids: looks.append(ids))
    sample = tiny_sample(glus)
    step = TrainingForward(glus.model, contrastive=contrastive_for(sample)).to("meta")
    glus.model.finish_loading()
    losses = step([sample.to("meta"), dataclasses.replace(sample.to("meta"), video="other")]).losses
    losses.total.backward()
    assert losses.contrastive is not None
    assert losses.total.is_meta
    assert len(looks) == 0
    step(sample.to("meta").per_expression()[:1])
    assert len(looks) == 1


def test_samples_that_do_not_fit(glus: GLUS) -> None:
    sample = tiny_sample(glus)
    for change in (
        {"targets": sample.targets[:, :2]},
        {"targets": sample.targets[0]},
        {"sam_pixels": sample.sam_pixels[:1]},
        {"clip_pixels": sample.clip_pixels[:2]},
        {"rows": sample.rows[:2]},
        {"exp_ids": ()},
        {"frames": ()},
    ):
        with pytest.raises(ValueError, match=r"mevis v0: .* do not fit"):
            dataclasses.replace(sample, **change)


def test_rows_that_do_not_fit(glus: GLUS) -> None:
    """D9: caught before the language model runs, not as an index error."""
    sample, step = tiny_sample(glus), TrainingForward(glus.model)
    seg = glus.model.seg_id
    swapped = (tiny_sample(glus, queries=4).rows[0], sample.rows[1], tiny_sample(glus, queries=2).rows[2])
    with pytest.raises(ValueError, match="mevis v0, expression 0: the conversation has 6 images and 4"):
        step([dataclasses.replace(sample, rows=swapped)])
    twice = (*sample.rows[:2], [*sample.rows[2], seg])
    with pytest.raises(ValueError, match=r"expression 2: the conversation has 5 images and 4 \[SEG\]"):
        step([dataclasses.replace(sample, rows=twice)])
