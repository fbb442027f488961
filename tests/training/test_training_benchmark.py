"""The sides of `benchmarks/training.py` agree, and do the work its text says (defects D28, D29, D30)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tiny import tiny_config, tiny_glus
from training_trees import CLIPS, write_tree

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import training

    yield training
    sys.modules.pop("training")


def test_sides_agree_and_repeat_what_is_said(benchmark: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny_glus(tiny_config()).save_pretrained(tmp_path / "tiny")
    data = write_tree(tmp_path / "data", "mevis", CLIPS[:1])  # four expressions, of which three are drawn
    bench = benchmark.prepare(data, str(tmp_path / "tiny"), "cpu", "fp32")
    found = {side: benchmark.outcome(bench, side, 0) for side in benchmark.SIDES}
    assert benchmark.agree(found, benchmark.TOLERANCE["fp32"])
    assert found["ours"].values["gradient_norm"] > 0
    work = {side: one.work for side, one in found.items()}

    def of(name: str) -> tuple[int, ...]:
        return tuple(work[side][name] for side in ("ours", "released", "repeat"))

    assert of("clip_frames") == (8, 24, 24)
    assert of("sam2_image_encodings") == (4, 4, 12)
    assert of("frames_at_sam2_size") == (4, 8, 8)
    assert of("memory_encoder_calls") == (3, 4, 12)
    assert of("memory_attention_calls") == (3, 3, 9)
    assert work["ours"]["lm_head_positions"] == 12
    # Context frames and first query frame (5 of 8 images) are read once, not once per expression.
    assert work["ours"]["llm_positions"] < 0.75 * work["released"]["llm_positions"]
    assert work["released"]["lm_head_positions"] == work["released"]["llm_positions"]
    # Once, inside transformers, however long the rows are (D23).
    assert work["ours"]["host_waits"] <= 1
    found["repeat"].values["loss"] *= 1.001
    assert not benchmark.agree(found, benchmark.TOLERANCE["fp32"])
