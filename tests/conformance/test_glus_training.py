"""The training forward, its losses and gradients (glus/README.md, 2.8)."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glus_golden import golden_model, load_weights_module

from glus.data.records import Record
from glus.data.transforms import clip_image, sam_image
from glus.masks import merge_instances
from glus.modeling.glus import GLUSModel
from glus.modeling.keys import RELEASED
from glus.text.labels import collate
from glus.text.prompts import wrap_images
from glus.text.tokenizer import GlusTokenizer
from glus.training.contrastive import ObjectContrastiveLoss, ObjectTable, TokenKey
from glus.training.forward import FrameTrace, TrainingForward, TrainingOutput, TrainingSample
from glus.training.objective import LossRules, Objective

DEFAULT_ROOT = Path(__file__).resolve().parents[3] / "shared" / "conformance"
ROOT = Path(os.environ.get("GLUS_CONFORMANCE", DEFAULT_ROOT)) / "glus"
CASES = sorted(p.stem.removeprefix("training_") for p in ROOT.glob("training_*.json"))

RELEASED_RULES = Objective(rules=LossRules.preset("released"))

# The table of positives of README 2.8: (video, expression) -> objects. The files do not hold it.
OBJECTS = {
    **{("va", str(i)): [3, 5] if i < 2 else [4] for i in range(4)},
    ("vb", "0"): [1],
    ("vb", "1"): [1, 2],
    **{("vc", str(i)): [i % 3] for i in range(5)},
    **{("vd", f"x_{i}"): [0] for i in range(2)},
}


@dataclass
class Run:
    case: dict[str, Any]
    golden: dict[str, np.ndarray]
    batch: list[TrainingSample]
    model: GLUSModel
    output: TrainingOutput
    traces: dict[tuple[int, int], FrameTrace]
    contrastive: ObjectContrastiveLoss | None
    work: dict[str, int]


def key_of(str_id: str, frame: str) -> TokenKey:
    """`dataset_video_exp`; an expression id may hold underscores, a video here does not."""
    dataset, video, exp_id = str_id.split("_", 2)
    return TokenKey(dataset, video, exp_id, frame)


def object_table() -> ObjectTable:
    records = [
        Record("mevis", video, exp, "x", ("0",), Path(), tuple(map(str, ids)))
        for (video, exp), ids in OBJECTS.items()
    ]
    return ObjectTable({"mevis": lambda: records})


def samples(case: dict[str, Any], golden: dict[str, np.ndarray], tokenizer: GlusTokenizer, sizes: tuple[int, int]):
    """The batch, rebuilt from frames and conversations."""
    context, clip_size, sam_size = case["context_frames"], *sizes
    text = collate([[wrap_images(c) for c in s["conversations"]] for s in case["samples"]], tokenizer)
    for name in ("input_ids", "labels", "attention_mask", "offset"):
        np.testing.assert_array_equal(getattr(text, name), golden[name])
    for index, sample in enumerate(case["samples"]):
        frames, shape = golden[f"s{index}.frames"], golden[f"s{index}.masks_shape"]
        bits = np.unpackbits(golden[f"s{index}.masks_packed"])[: int(np.prod(shape))]
        masks = bits.reshape(shape).astype(bool)
        keys = [key_of(s, "") for s in sample["str_ids"]]
        rows = range(text.offset[index], text.offset[index + 1])
        yield TrainingSample(
            rows=tuple(text.input_ids[r][text.attention_mask[r]].tolist() for r in rows),
            clip_pixels=torch.stack([clip_image(f, clip_size) for f in frames]),
            sam_pixels=torch.stack([sam_image(f, sam_size) for f in frames[context:]]),
            targets=torch.from_numpy(merge_instances(masks[None], "sum")),
            dataset=keys[0].dataset,
            video=keys[0].video,
            exp_ids=tuple(key.exp_id for key in keys),
            frames=tuple(sample["frame_ids"]),
        )


def recorded_draws(case: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """(number drawn from, recorded draw), in the order our loss asks."""
    for token in case["contrastive"]:
        if token["loss"] is not None:
            yield from ((len(token["negative_bank_index"]), d) for d in token["negative_draws"])
            yield len(token["positive_bank_index"]), token["positive_draw"]


class Replay(random.Random):
    """Answers with the recorded draws, and insists on being asked what was asked then."""

    recorded: Iterator[tuple[int, int]]

    def randrange(self, below: int) -> int:  # type: ignore[override]
        size, drawn = next(self.recorded)
        assert below == size
        return drawn


def contrastive_loss(root: Path, case: dict[str, Any], width: int, seed: int) -> ObjectContrastiveLoss:
    generator = Replay()
    generator.recorded = recorded_draws(case)
    loss = ObjectContrastiveLoss(object_table(), generator, rules=RELEASED_RULES.rules)
    entries = case["bank_before"]
    tokens = load_weights_module(root).deterministic_tensor(
        case["bank_tensor"], (len(entries), width), seed, "embedding"
    )
    loss.bank.append([key_of(*entry) for entry in entries], torch.from_numpy(tokens))
    return loss


def set_trainable(model: GLUSModel, case: dict[str, Any]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(RELEASED.to_foreign(name) in case["grad_norm"])


def run_case(root: Path, name: str, tokenizer: GlusTokenizer) -> Run:
    case = json.loads((root / f"training_{name}.json").read_text())
    spec = json.loads((root / "spec.json").read_text())
    with np.load(root / f"training_{name}.npz") as data:
        golden = {k: data[k] for k in data}
    model = golden_model(root, case.get("lm_scale", 1.0)).train()
    set_trainable(model, case)
    config = model.config
    batch = list(samples(case, golden, tokenizer, (config.vision.image_size, config.sam2.image_size)))
    contrastive = None
    if case["use_contrastive_loss"]:
        contrastive = contrastive_loss(root, case, config.sam2.hidden_size, spec["seed"])
    work = {"clip": 0, "sam": 0, "positions": 0}

    def count(what: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            work[what] += len(args[0]) if what != "positions" else math.prod(args[0].shape[:2])

        return hook

    first = model.language.decoder.layers[0]
    parts = {"clip": model.vision, "sam": model.sam.image_encoder, "positions": first}
    for what, part in parts.items():
        part.register_forward_pre_hook(count(what))
    step = TrainingForward(model, RELEASED_RULES, contrastive, case["use_memory_bank"])
    traces: dict[tuple[int, int], FrameTrace] = {}
    output = step(batch, observer=lambda t: traces.update({(t.sample, t.position): t}))
    output.losses.total.backward()
    return Run(case, golden, batch, model, output, traces, contrastive, work)


@pytest.fixture(scope="module")
def tokenizer(golden: Callable[[str], Path]) -> GlusTokenizer:
    facts = json.loads((golden("glus") / "tokenization.json").read_text())["tokenizer"]
    return GlusTokenizer((golden("glus") / facts["file"]).read_bytes(), facts["added_tokens"])


@pytest.fixture(scope="module", params=CASES or ["absent"])
def run(request: pytest.FixtureRequest, golden: Callable[[str], Path], tokenizer: GlusTokenizer) -> Run:
    return run_case(golden("glus"), request.param, tokenizer)


def test_states_at_seg(run: Run) -> None:
    golden, out = run.golden, run.output
    rows, queries = golden["seg_positions"].shape
    assert out.layout.seg_rows == [row for row in range(rows) for _ in range(queries)]
    np.testing.assert_array_equal(np.reshape(out.layout.seg_columns, (rows, queries)), golden["seg_positions"])
    for ours, name, tolerance in (
        (out.seg_hidden, "seg_hidden", 5e-5),
        (out.seg_embedding, "seg_embedding", 1e-4),
    ):
        np.testing.assert_allclose(
            ours.detach().reshape(golden[name].shape), golden[name], atol=tolerance, rtol=0, err_msg=name
        )


def test_mask_logits(run: Run) -> None:
    golden = run.golden
    checked = 0
    for index, logits in enumerate(run.output.low_res):
        for frame in range(logits.shape[1]):
            stats = golden[f"low_res_stats.f{frame}.s{index}"]
            for low, sub, (mean, std, share) in zip(
                logits[:, frame].double(), golden[f"low_res_sub.f{frame}.s{index}"], stats, strict=True
            ):
                step = low.shape[-1] // sub.shape[-1]
                np.testing.assert_allclose(low[::step, ::step], sub, atol=1e-3 * std, rtol=0)
                np.testing.assert_allclose(low.mean(), mean, atol=1e-3 * std, rtol=0)
                np.testing.assert_allclose(low.std(unbiased=False), std, atol=1e-3 * std, rtol=0)
                assert float((low > 0).double().mean()) == pytest.approx(share, abs=1e-3)
                checked += 1
    assert checked == golden["seg_positions"].size


def test_memory(run: Run) -> None:
    names = [name for name in run.golden if name.startswith("memory_feature_sub.")]
    assert bool(names) == run.case["use_memory_bank"]
    for (index, frame), trace in run.traces.items():
        last = frame + 1 == len(run.batch[index].frames)
        assert (trace.memory is None) == (last or not names)
        if not names:
            continue
        # The last frame's memory is read by no one; here it is computed for the comparison alone.
        entry = trace.memory or run.model.sam.encode_memory(trace.features, trace.output)
        assert not entry.features.requires_grad
        golden = run.golden[f"memory_feature_sub.f{frame}.s{index}"]
        for features, sub in zip(entry.features, golden, strict=True):
            step = features.shape[-1] // sub.shape[-1]
            np.testing.assert_allclose(features[:, ::step, ::step], sub, atol=5e-3 * float(features.std()), rtol=0)


def test_losses(run: Run) -> None:
    ours = run.output.losses.detached()
    for name, value in run.case["losses"].items():
        if value is None:
            assert name not in ours
        else:
            assert float(ours[name]) == pytest.approx(value, rel=1e-4), name


def test_gradients(run: Run) -> None:
    """Names, norms and the recorded tensors; a parameter without gradient has none at all."""
    gradients = {RELEASED.to_foreign(name): p.grad for name, p in run.model.named_parameters()}
    trainable = {RELEASED.to_foreign(name) for name, p in run.model.named_parameters() if p.requires_grad}
    norms = run.case["grad_norm"]
    assert trainable == set(norms)
    without = [name for name in norms if gradients[name] is None]
    assert sorted(without) == sorted(run.case["trainable_without_grad"])
    assert sorted(without) == sorted(name for name, norm in norms.items() if norm is None)
    assert all(gradient is None for name, gradient in gradients.items() if name not in norms)
    for name, norm in norms.items():
        gradient = gradients[name]
        if gradient is None:
            continue
        ours = float(gradient.double().norm())
        if norm > 1e-3:
            assert ours == pytest.approx(norm, rel=1e-3), name
        elif norm > 0:  # zero in exact arithmetic; the noise depends on the attention kernel
            assert ours < 1e-3, name
        else:  # the hyper-networks of the masks training never takes
            assert ours == 0, name
    compared = 0
    for key in run.golden:
        if not key.startswith("grad.") or key.endswith("embed_tokens.rows") or key == "grad.lm_head.rows":
            continue
        name = key.removeprefix("grad.").removesuffix(".rows")
        gradient = gradients[name]
        assert gradient is not None
        if key.endswith(".rows"):
            gradient = gradient[run.golden[f"grad.{name.split('.')[-2]}.rows"]]
        scale = float(np.abs(run.golden[key]).max())
        np.testing.assert_allclose(gradient, run.golden[key], atol=1e-3 * scale, rtol=0, err_msg=name)
        compared += 1
    assert compared


def test_contrastive(run: Run) -> None:
    if run.contrastive is None:
        assert run.output.contrastive is None
        return
    result, loss, tokens = run.output.contrastive, run.contrastive, run.case["contrastive"]
    assert result is not None
    assert len(loss.bank) == run.case["bank_size_after"]
    keys = [key for sample in run.batch for key in sample.keys]
    known = [key for key in keys if key.dataset == "mevis"]
    assert [key_of(t["str_id"], t["frame_id"]) for t in tokens] == known
    for found, token in zip(loss.candidates(known), tokens, strict=True):
        assert found.positives == token["positive_bank_index"]
        assert found.negatives == token["negative_bank_index"]
    recorded = [t["loss"] for t in tokens if t["loss"] is not None]
    assert [tokens[row]["loss"] is not None for row in result.rows] == [True] * len(recorded)
    assert next(loss.generator.recorded, None) is None  # type: ignore[attr-defined]
    if recorded:
        assert result.losses is not None
        np.testing.assert_allclose(result.losses.detach(), recorded, rtol=1e-4)
    else:
        assert result.mean is None


def test_work(run: Run) -> None:
    """CLIP once per frame, SAM-2 once per query frame, and the language model over context and first query frame
    once per sample, whatever the number of expressions."""
    frames = sum(len(sample.clip_pixels) for sample in run.batch)
    queries = sum(len(sample.frames) for sample in run.batch)
    assert (run.work["clip"], run.work["sam"]) == (frames, queries)
    assert max(len(sample.rows) for sample in run.batch) > 1
    lengths = run.output.layout.lengths
    context = (frames - queries) // len(run.batch) * run.model.config.vision.tokens_per_image
    assert 0 < run.work["positions"] <= len(lengths) * max(lengths) - (len(lengths) - len(run.batch)) * context
