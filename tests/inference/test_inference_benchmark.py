"""`benchmarks/inference.py`: its sides agree, and do the work its text and the reference document say."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import tiny_config
from tiny_text import tiny_tokenizer

from glus.config import Behaviour, InferenceConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import inference

    yield inference
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").exists():
            sys.modules.pop(name)


def made_up_bench(benchmark: ModuleType) -> Any:
    tokenizer = tiny_tokenizer()
    config = tiny_config(behaviour=Behaviour(seg_decision="always", stability_fallback=False))
    model = sys.modules["made_up"].random_model(config, tokenizer, "cpu", torch.float32)
    clip, queries = benchmark.MadeUpClip(6, 40, 56), benchmark.made_up_queries(3)
    return benchmark.Bench(model, tokenizer, clip, queries, InferenceConfig())


def test_sides_agree_and_do_the_stated_work(benchmark: ModuleType) -> None:
    bench = made_up_bench(benchmark)
    found = {side: benchmark.measure(bench, side, "cpu") for side in benchmark.SIDES}
    assert {key: mask.any() for key, mask in found["engine"].masks.items()} == dict.fromkeys(
        ((row, frame) for row in range(3) for frame in range(6)), True
    )
    assert min(benchmark.overlaps(found["engine"], found["reference"])) >= benchmark.LEAST_IOU["fp32"]
    stated = benchmark.stated_work(bench)
    work = {side: one.work for side, one in found.items()}
    assert benchmark.as_stated(work, stated)
    assert stated["reference"]["clip_frames"] == 3 * (8 * 6 - 6)
    assert work["engine"]["clip_frames"] == 6
    assert set(found["engine"].parts) == set(found["reference"].parts)
    assert all(seconds > 0 for seconds in found["engine"].parts.values())
    # what is wrong would show
    work["engine"]["llm_positions"] = stated["engine"]["llm_positions"] + 1
    assert not benchmark.as_stated(work, stated)
    turned = {key: ~mask for key, mask in found["engine"].masks.items()}
    assert max(benchmark.overlaps(found["reference"], dataclasses.replace(found["engine"], masks=turned))) == 0


def test_what_the_parts_need_at_least(benchmark: ModuleType) -> None:
    bench = made_up_bench(benchmark)
    found = benchmark.needed(bench)
    whole = {side: parts.pop("everything") for side, parts in found.items()}
    for side, parts in found.items():
        assert all(need.operations > 0 for need in parts.values())
        inside = sum(need.operations for need in parts.values())
        assert 0.9 * whole[side].operations < inside <= whole[side].operations
    assert whole["reference"].operations > 1.3 * whole["engine"].operations
    # CLIP: weights once per chunk of frames, pixels in, tokens out; a position's products with the head's weights
    config, model = bench.model.config, bench.model
    clip = sum(p.nbytes for p in model.vision.parameters())
    frames = 6 * 4 * (3 * config.vision.image_size**2 + config.vision.tokens_per_image * 32)
    calls = (found["engine"]["clip"].bytes - frames) / clip
    assert calls == int(calls) <= 6
    heads = sum(
        weight.numel() for weight in (model.language.lm_head.weight, *(model.seg_head[i].weight for i in (0, 2)))
    )
    assert found["engine"]["heads"].operations == 2 * 3 * 6 * heads
    rates = benchmark.Rates(1e9, 1e8)
    assert (rates.floor(2e9, 1e8), rates.floor(1e9, 3e8)) == (2.0, 3.0)


def test_memory_is_watched_and_growth_is_told(benchmark: ModuleType) -> None:
    memory = sys.modules["inference_memory"]
    bench = made_up_bench(benchmark)
    for stream in (False, True):
        steps = memory.results(bench.model, bench.tokenizer, bench.clip, 2, 0.1, stream)
        found = memory.watch(steps, 6, "cpu")
        assert [sample["frame"] for sample in found["samples"]] == [1, 2, 3, 4, 5, 6]
        assert found["samples"][-1]["peak"] == found["peak"] >= found["before"] > 0

    def run(*peaks: float) -> dict[str, Any]:
        return {"peak": peaks[-1], "samples": [{"peak": peak} for peak in peaks]}

    assert memory.flat([run(100), run(104)], run(90, 100, 104, 104))
    assert not memory.flat([run(100), run(106)], run(90, 100, 104, 104))
    assert not memory.flat([run(100), run(104)], run(90, 100, 104, 106))


def test_sizes_that_cannot_run_are_refused(benchmark: ModuleType) -> None:
    with pytest.raises(benchmark.InputError, match="7b needs a GPU"):
        benchmark.main(["--size", "7b", "--device", "cpu"])
