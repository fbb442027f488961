"""Whole-clip inference and the LLM states of its windows (glus/README.md, 2.6 and 2.7)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glus_golden import golden_model

from glus.config import Behaviour, InferenceConfig
from glus.inference import engine
from glus.inference.queries import Dialog, FrameResult
from glus.inference.reference import StepTrace, clip_features, segment_expression
from glus.inference.selection import context_frames
from glus.modeling.glus import GLUSModel, Readout
from glus.modeling.mask_decoder import MaskOutput
from glus.modeling.memory import MemoryBank, MemoryEntry
from glus.modeling.work import counted
from glus.text.tokenizer import IMAGE_INDEX, GlusTokenizer
from glus.video import FrameSource, open_frames

DEFAULT_ROOT = Path(__file__).resolve().parents[3] / "shared" / "conformance"
ROOT = Path(os.environ.get("GLUS_CONFORMANCE", DEFAULT_ROOT)) / "glus"
SCHEDULES = ("reference", "engine")
CASES = sorted(p.stem.removeprefix("inference_") for p in ROOT.glob("inference_*.json"))
WORK = {
    "clip_frames": "clip_images",
    "sam2_image_encodings": "sam_image_encoder_images",
    "llm_positions": "llm_tokens",
    "mask_decoder_calls": "mask_decoder_calls",
    "memory_attention_calls": "memory_attention_calls",
    "memory_encoder_calls": "memory_encoder_calls",
}
"""Our names for work, and the goldens'."""


@dataclass
class Run:
    case: dict[str, Any]
    golden: dict[str, np.ndarray]
    results: list[FrameResult]
    traces: list[StepTrace]
    model: GLUSModel
    work: dict[str, int]


@pytest.fixture(scope="module")
def tokenizer(golden: Callable[[str], Path]) -> GlusTokenizer:
    root = golden("glus")
    added = json.loads((root / "tokenization.json").read_text())["tokenizer"]["added_tokens"]
    return GlusTokenizer((root / "tokenizer.model").read_bytes(), added)


def run_case(root: Path, name: str, tokenizer: GlusTokenizer, schedule: str = "reference") -> Run:
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
    args = (model, tokenizer, frames, case["expression"], config, case["key"] or 0)
    traces: list[StepTrace] = []
    with counted(model) as seen:
        if schedule == "engine":
            results, traces = engine_traces(*args)
        else:
            results = list(segment_expression(*args, observer=traces.append))
    return Run(case, golden, results, traces, model, {theirs: seen[ours] for ours, theirs in WORK.items()})


def engine_traces(
    model: GLUSModel, tokenizer: GlusTokenizer, frames: FrameSource, text: str, config: InferenceConfig, key: int
) -> tuple[list[FrameResult], list[StepTrace]]:
    """What the engine computes on the way, put together as the steps it stands for."""
    readouts: list[Readout] = []
    outputs: list[MaskOutput] = []
    memories: list[MemoryEntry] = []
    recalls: list[list[int]] = []
    readout, decode, store, recall = model.readout, model.sam.decode, MemoryBank.store, MemoryBank.recall
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "readout", lambda hidden: readouts.append(readout(hidden)) or readouts[-1])
        patch.setattr(model.sam, "decode", lambda *args: outputs.append(decode(*args)) or outputs[-1])
        patch.setattr(MemoryBank, "store", lambda *args: memories.append(args[2]) or store(*args))
        patch.setattr(
            MemoryBank,
            "recall",
            lambda *args: recalls.append(args[0].recalled_positions(args[1])) or recall(*args),
        )
        results = list(engine.segment_expression(model, tokenizer, frames, text, config, key))
    rows = [
        Readout(*(part[i : i + 1] for part in astuple(one))) for one in readouts for i in range(len(one.hidden))
    ]
    context = context_frames(len(frames), config.context_frames)
    dialog = Dialog(model.config, tokenizer, text, config)
    last = {0: len(frames) - 1, 1: 0}  # nobody reads these memories, and the engine does not make them
    traces = []
    for result, row in zip(results, rows, strict=True):
        step, start = (1, key) if result.pass_id == 0 else (-1, key)
        shown = list(range(start, result.frame + step, step))[-config.query_frames :]
        output = memory = None
        recalled: list[int] = []
        if not result.failed:
            output = outputs.pop(0)
            recalled = recalls.pop(0) if config.use_memory else []
            if config.use_memory and result.frame != last[result.pass_id]:
                memory = memories.pop(0)
        ids = dialog.ids(len(shown))
        traces.append(StepTrace(result.frame, ids, [*context, *shown], recalled, row, output, memory))
    assert [len(outputs), len(memories), len(recalls)] == [0, 0, 0]
    return results, traces


@pytest.fixture(
    scope="module", params=[(case, how) for case in CASES or ["absent"] for how in SCHEDULES], ids="-".join
)
def run(request: pytest.FixtureRequest, golden: Callable[[str], Path], tokenizer: GlusTokenizer) -> Run:
    case, schedule = request.param
    return run_case(golden("glus"), case, tokenizer, schedule)


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
        if trace.memory is None:
            assert run.work["memory_encoder_calls"] < run.case["counts"]["memory_encoder_calls"]
            continue
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


def test_work(run: Run, request: pytest.FixtureRequest) -> None:
    """The reference schedule does the original's work, the engine each thing once."""
    counts = {name: run.case["counts"][name] for name in run.work}
    if "reference" in request.node.callspec.id:
        assert run.work == counts
        return
    context = run.case["passes"][0]["context"]
    assert run.work["clip_images"] == len({r.frame for r in run.results})
    assert run.work["sam_image_encoder_images"] == len({r.frame for r in run.results if not r.failed})
    for name in ("mask_decoder_calls", "memory_attention_calls"):
        assert run.work[name] == counts[name]
    assert run.work["memory_encoder_calls"] == sum(trace.memory is not None for trace in run.traces)
    ids, images = run.traces[0].input_ids, len(context)
    cut = [i for i, token in enumerate(ids) if token == IMAGE_INDEX][images]
    shared = cut + images * (run.model.config.vision.tokens_per_image - 1)
    least = shared + counts["llm_tokens"] - len(run.results) * shared
    assert run.work["llm_tokens"] <= least


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
