"""Whole-clip inference and the LLM states of its windows (glus/README.md, 2.6 and 2.7)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glus_golden import golden_model

from glus.config import Behaviour, InferenceConfig
from glus.inference.engine import FrameResult, StepTrace, clip_features, segment_expression
from glus.modeling.glus import GLUSModel
from glus.text.tokenizer import GlusTokenizer
from glus.video import open_frames

DEFAULT_ROOT = Path(__file__).resolve().parents[3] / "shared" / "conformance"
ROOT = Path(os.environ.get("GLUS_CONFORMANCE", DEFAULT_ROOT)) / "glus"
CASES = sorted(p.stem.removeprefix("inference_") for p in ROOT.glob("inference_*.json"))


@dataclass
class Run:
    case: dict[str, Any]
    golden: dict[str, np.ndarray]
    results: list[FrameResult]
    traces: list[StepTrace]
    model: GLUSModel


@pytest.fixture(scope="module")
def tokenizer(golden: Callable[[str], Path]) -> GlusTokenizer:
    root = golden("glus")
    added = json.loads((root / "tokenization.json").read_text())["tokenizer"]["added_tokens"]
    return GlusTokenizer((root / "tokenizer.model").read_bytes(), added)


def run_case(root: Path, name: str, tokenizer: GlusTokenizer) -> Run:
    case = json.loads((root / f"inference_{name}.json").read_text())
    with np.load(root / f"inference_{name}.npz") as data:
        golden = {k: data[k] for k in data}
    with np.load(root / "clips.npz") as clips:
        frames = open_frames(clips[case["clip"]])
    behaviour = Behaviour(reset_memory_gamma=case.get("gamma") == "unloaded")
    model = golden_model(root, case.get("lm_scale", 1.0), behaviour)
    config = InferenceConfig(
        context_frames=case["ctx"],
        query_frames=case["q"],
        mem_stride=case["mem_stride"],
        use_memory=not case["nobank"],
    )
    traces: list[StepTrace] = []
    results = list(
        segment_expression(
            model, tokenizer, frames, case["expression"], config, case["key"] or 0, observer=traces.append
        )
    )
    return Run(case, golden, results, traces, model)


@pytest.fixture(scope="module", params=CASES or ["absent"])
def run(request: pytest.FixtureRequest, golden: Callable[[str], Path], tokenizer: GlusTokenizer) -> Run:
    return run_case(golden("glus"), request.param, tokenizer)


def decoded(run: Run) -> list[tuple[int, StepTrace]]:
    return [(i, t) for i, t in enumerate(run.traces) if t.output is not None]


def test_order_prompts_and_decisions(run: Run) -> None:
    golden, case = run.golden, run.case
    assert [r.frame for r in run.results] == golden["frame_index"].tolist()
    assert [r.pass_id for r in run.results] == golden["pass_id"].tolist()
    assert [r.failed for r in run.results] == golden["failed"].tolist()
    assert [int(t.readout.next_token[0]) for t in run.traces] == golden["next_token"].tolist()
    assert [len(t.input_ids) for t in run.traces] == golden["input_lengths"].tolist()
    assert [i for t in run.traces for i in t.input_ids] == golden["input_ids"].tolist()
    if not case["nobank"]:
        assert [t.recalled for t in run.traces] == case["memory_frames"]
    contexts = [p["context"] for p in case["passes"]]
    for trace, result in zip(run.traces, run.results, strict=True):
        context = contexts[result.pass_id]
        assert trace.window_frames[: len(context)] == context


def test_language_states(run: Run) -> None:
    golden, seg = run.golden, run.model.seg_id
    for i, trace in enumerate(run.traces):
        logits = trace.readout.logits[0]
        assert float(logits[seg]) == pytest.approx(float(golden["seg_logit"][i]), abs=2e-4)
        others = torch.cat([logits[:seg], logits[seg + 1 :]])
        assert float(logits[seg] - others.max()) == pytest.approx(float(golden["seg_margin"][i]), abs=2e-4)
    for i, trace in decoded(run):
        np.testing.assert_allclose(trace.readout.hidden[0].numpy(), golden["seg_hidden"][i], atol=5e-5, rtol=0)
        np.testing.assert_allclose(
            trace.readout.embedding[0].numpy(), golden["seg_embedding"][i], atol=1e-4, rtol=0
        )


def test_decoder(run: Run) -> None:
    golden = run.golden
    for i, trace in decoded(run):
        out = trace.output
        assert out is not None
        std = float(golden["low_res_stats"][i, 1])
        step = out.embed.shape[-1] // golden["image_embed_sub"].shape[-1]
        np.testing.assert_allclose(
            out.embed[0, :, ::step, ::step].numpy(), golden["image_embed_sub"][i], atol=2e-4, rtol=0
        )
        low = out.low_res[0, 0].double()
        step = low.shape[-1] // golden["low_res_sub"].shape[-1]
        np.testing.assert_allclose(low[::step, ::step].numpy(), golden["low_res_sub"][i], atol=1e-3 * std, rtol=0)
        stats = [low.mean(), low.std(unbiased=False), low.min(), low.max()]
        np.testing.assert_allclose(stats, golden["low_res_stats"][i, :4], atol=1e-3 * std, rtol=0)
        flat = out.candidates[0].flatten(1).double()
        np.testing.assert_allclose(flat.mean(1), golden["candidate_stats"][i, :, 0], atol=1e-3 * std, rtol=0)
        np.testing.assert_allclose(
            flat.std(1, unbiased=False), golden["candidate_stats"][i, :, 1], atol=1e-3 * std, rtol=0
        )
        np.testing.assert_allclose(out.candidate_iou[0], golden["iou_all"][i], atol=1e-4, rtol=0)
        assert float(out.iou[0]) == pytest.approx(float(golden["iou_selected"][i]), abs=1e-4)
        assert float(out.stability[0]) == pytest.approx(float(golden["stability"][i]), abs=1e-3)
        assert float(out.object_score[0]) == pytest.approx(float(golden["object_score"][i]), abs=1e-4)


def test_memory(run: Run) -> None:
    if "memory_feature_sub" not in run.golden:
        assert run.case["nobank"] or run.golden["failed"].all()
        assert all(t.memory is None for t in run.traces)
        return
    for i, trace in decoded(run):
        assert trace.memory is not None
        golden = run.golden["memory_feature_sub"][i]
        features = trace.memory.features[0]
        step = features.shape[-1] // golden.shape[-1]
        np.testing.assert_allclose(
            features[:, ::step, ::step].numpy(), golden, atol=5e-3 * float(features.std()), rtol=0
        )


def test_masks(run: Run) -> None:
    height, width = run.case["height"], run.case["width"]
    for i, result in enumerate(run.results):
        packed = run.golden["mask_packed"][i]
        golden = np.unpackbits(packed)[: height * width].reshape(height, width).astype(bool)
        assert result.mask.shape == golden.shape
        assert np.count_nonzero(result.mask != golden) <= 0.001 * golden.size
        if result.failed:
            assert not result.mask.any()


def test_work_is_never_more_than_the_originals(golden: Callable[[str], Path], tokenizer: GlusTokenizer) -> None:
    """CLIP sees each frame once a pass where the original encodes every window anew."""
    root = golden("glus")
    case = json.loads((root / "inference_base.json").read_text())
    with np.load(root / "clips.npz") as clips:
        frames = open_frames(clips[case["clip"]])
    model = golden_model(root)
    seen: list[int] = []
    model.vision.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    config = InferenceConfig(case["ctx"], case["q"], case["mem_stride"])
    clip = clip_features(model, frames, config)
    list(segment_expression(model, tokenizer, frames, case["expression"], config, clip=clip))
    assert sum(seen) == len(frames) < case["counts"]["clip_images"]


@torch.inference_mode()
def test_windows(golden: Callable[[str], Path], tokenizer: GlusTokenizer) -> None:
    root = golden("glus")
    run = run_case(root, "base", tokenizer)
    with np.load(root / "clips.npz") as clips:
        frames = open_frames(clips[run.case["clip"]])
    config = InferenceConfig(run.case["ctx"], run.case["q"], run.case["mem_stride"])
    clip = clip_features(run.model, frames, config)
    with np.load(root / "windows.npz") as data:
        for index in sorted({int(k[1:].split(".")[0]) for k in data if k.startswith("w") and "." in k}):
            g = {k.split(".", 1)[1]: data[k] for k in data if k.startswith(f"w{index}.")}
            trace = run.traces[index]
            assert trace.input_ids == g["input_ids"].tolist()
            batch = run.model.assemble([trace.input_ids], clip.tokens(trace.window_frames))
            assert batch.layout.lengths == [int(g["length"])]
            last = batch.layout.lengths[0] - 1
            positions = [*batch.layout.seg_columns, last]
            assert positions == g["seg_positions"].tolist()
            states = run.model.states(batch)[0]
            step = -(-states.shape[0] // g["hidden_sub"].shape[0])
            np.testing.assert_allclose(batch.embeddings[0, ::step], g["inputs_embeds_sub"], atol=5e-5, rtol=0)
            np.testing.assert_allclose(states[::step], g["hidden_sub"], atol=5e-5, rtol=0)
            np.testing.assert_allclose(states[positions], g["hidden_at_seg"], atol=5e-5, rtol=0)
            np.testing.assert_allclose(
                run.model.seg_head(states[positions]), g["embedding_at_seg"], atol=1e-4, rtol=0
            )
            logits = run.model.language.logits(states[last], fp32=True)
            step = -(-logits.shape[0] // g["logits_sub"].shape[0])
            np.testing.assert_allclose(logits[::step], g["logits_sub"], atol=2e-4, rtol=0)
            top = logits.topk(len(g["top_ids"]))
            assert top.indices.tolist() == g["top_ids"].tolist()
            np.testing.assert_allclose(top.values, g["top_logits"], atol=2e-4, rtol=0)
        for key, trace in (("low_res_first", run.traces[0]), ("low_res_last", run.traces[-1])):
            if key in data:
                assert trace.output is not None
                full = data[key].reshape(trace.output.low_res.shape[-2:])
                np.testing.assert_allclose(trace.output.low_res[0, 0], full, atol=1e-3 * float(full.std()), rtol=0)
