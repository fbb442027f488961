"""`benchmarks/inference.py`: its sides agree, and do the work its text and the reference document say."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import tiny_config
from tiny_text import tiny_tokenizer

from glus.config import Behaviour, InferenceConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import inference

    yield inference
    sys.modules.pop("inference")


def test_sides_agree_and_do_the_stated_work(benchmark: ModuleType) -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(behaviour=Behaviour(seg_decision="always", stability_fallback=False))
    model = benchmark.random_model(config, tokenizer, "cpu", torch.float32)
    queries = benchmark.made_up_queries(3)
    bench = benchmark.Bench(model, tokenizer, benchmark.made_up_clip(6, 40, 56), queries, InferenceConfig())
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
    flops = benchmark.operations(bench)
    assert flops["reference"] > 1.3 * flops["engine"] > 0
    assert set(found["engine"].parts) == set(found["reference"].parts)
    assert all(seconds > 0 for seconds in found["engine"].parts.values())
    # what is wrong would show
    work["engine"]["llm_positions"] = stated["engine"]["llm_positions"] + 1
    assert not benchmark.as_stated(work, stated)
    turned = {key: ~mask for key, mask in found["engine"].masks.items()}
    assert max(benchmark.overlaps(found["reference"], dataclasses.replace(found["engine"], masks=turned))) == 0


def test_sizes_that_cannot_run_are_refused(benchmark: ModuleType) -> None:
    with pytest.raises(benchmark.InputError, match="7b needs a GPU"):
        benchmark.main(["--size", "7b", "--device", "cpu"])
