"""`benchmarks/selector.py`: its sides agree and do the stated work, and what is wrong would show."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tiny_selector import tiny_selector

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
QUICK = ["--frames", "12", "--expressions", "2", "--device", "cpu", "--precision", "fp32"]
FEW = ["--frames", "3", "--expressions", "1", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import selector

    made = tiny_selector()
    monkeypatch.setattr(selector, "build", lambda *_: (made.model, made.tokenizer))
    yield selector
    sys.modules.pop("selector")


def figures(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_sides_agree(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(QUICK) == 0
    found = figures(capsys)
    assert found["equal"] is found["counts_as_stated"] is found["same_key_frames"] is True
    assert found["counts"]["engine"]["clip_frames"] == 12
    assert found["counts"]["reference"]["clip_frames"] == 2 * 12 * (6 + 1)
    assert found["ratio_of_operations"] > 3
    assert found["least_spread"] > 100 * found["largest_difference"]


def test_a_fault_shows(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = benchmark.stated_work

    def wrong(bench: object) -> dict:
        work = stated(bench)
        work["engine"]["llm_positions"] -= 1
        return work

    monkeypatch.setattr(benchmark, "stated_work", wrong)
    assert benchmark.main(FEW) == 1
    assert figures(capsys)["counts_as_stated"] is False
    monkeypatch.setattr(benchmark, "stated_work", stated)
    monkeypatch.setattr(benchmark, "difference", lambda *_: 1e-4)
    assert benchmark.main(FEW) == 1
    assert figures(capsys)["equal"] is False


def test_sizes_that_cannot_run_are_refused(benchmark: ModuleType) -> None:
    with pytest.raises(benchmark.InputError, match="7b needs a GPU"):
        benchmark.main(["--size", "7b", "--device", "cpu"])
