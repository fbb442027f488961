"""`python -m glus doctor`: what it finds here, and what it makes of other machines."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_selector import tiny_selector

from glus import doctor, registry
from glus.registry import bundled_folders
from kfs.checkpoints import save_selector


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return doctor.gather()


@pytest.fixture
def facts(found: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(found)


def test_this_machine(found: dict[str, Any]) -> None:
    assert found["versions"]["torch"] == torch.__version__
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert 0 < found["machine"]["memory_free"] <= found["machine"]["memory"]
    assert found["attention"]["cpu"]["math"] is True
    assert found["attention"]["cpu"]["cudnn_attention"] is False
    assert {"train", "quant", "dev"} <= found["extras"].keys()
    assert [Path(one["path"]).name for one in found["checkpoints"]] == [f.name for f in bundled_folders()]
    assert all(one["works"] for one in found["checkpoints"])
    if found["deepspeed"]:
        assert found["deepspeed"]["accelerator"] == ("cuda" if found["gpus"] else "cpu")


def test_both_forms(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "gather", lambda: copy.deepcopy(found))
    assert doctor.main(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: told[name] for name in found} == found
    assert doctor.main([]) == 0
    shown = capsys.readouterr().out
    for line in (*told["runs"], *told["advice"], torch.__version__):
        assert line in shown


@pytest.mark.parametrize(
    ("memory", "verdict"),
    [(80.0, "yes, in bf16"), (12.0, "yes, in 8 bits"), (6.0, "yes, in 4 bits"), (4.0, "no, too little")],
)
def test_what_a_gpu_runs(memory: float, verdict: str, facts: dict[str, Any]) -> None:
    card = {"name": "X", "memory": memory, "memory_free": memory, "capability": "7.5", "bf16": False}
    facts["gpus"] = [card]
    assert f"a released 7B model on GPU 0: {verdict}" in "\n".join(doctor.runs(facts))
    assert "GPU 0 (X) has no fast bf16: use --precision fp16" in doctor.advice(facts)
    assert "GPU 0" in doctor.text({**facts, "runs": [], "advice": []})


@pytest.mark.parametrize(
    ("memory", "verdict"), [(64.0, "in fp32"), (20.0, "--precision bf16"), (8.0, "no, about")]
)
def test_what_a_processor_runs(memory: float, verdict: str, facts: dict[str, Any]) -> None:
    facts["gpus"] = []
    facts["machine"]["memory_free"] = memory
    assert verdict in doctor.runs(facts)[0]


def test_advice(facts: dict[str, Any]) -> None:
    facts.update(
        gpus=[], nvidia_driver=True, torch_cuda=None, deepspeed={"accelerator": None, "problem": "broken"}
    )
    facts["machine"].update(cores=8, torch_threads=2)
    facts["video_encoders"].update(libx264=False, libopenh264=False)
    facts["extras"]["quant"] = {"installed": False, "missing": ["b>=1"], "install": "pip install -e '.[quant]'"}
    facts["disk"] = [
        {"what": "here", "path": "/a", "free": 1.5, "writable": True},
        {"what": "there", "path": "/b", "free": 90.0, "writable": False},
    ]
    facts["versions"]["sam2"] = None
    told = "\n".join(doctor.advice(facts))
    for part in (
        "torch sees no GPU (it is a CPU build)",
        "torch uses 2 of 8 cores",
        "no H.264 encoder",
        "deepspeed cannot be imported (broken)",
        "only 1.5 GiB free in /a",
        "/b (there) takes no files",
        "extra quant is not installed (b>=1): pip install -e '.[quant]'",
        "sam2 is missing",
    ):
        assert part in told


def test_a_damaged_checkpoint_is_told(tmp_path: Path, facts: dict[str, Any]) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(bundled_folders()[0], folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    report = doctor.checkpoint(folder)
    assert report["works"] is False
    assert "model.safetensors" in report["detail"]
    facts["checkpoints"] = [report]
    assert doctor.advice(facts)[0].startswith(f"{folder} does not work")
    assert "broken on the CPU: no" in doctor.runs(facts)


def test_a_bundled_selector_is_known_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kfs-tiny"
    save_selector(tiny_selector(), folder)
    report = doctor.checkpoint(folder)
    assert report["works"] is True
    assert "selector" in report["detail"]
    monkeypatch.setattr(registry, "bundled_folders", lambda: [folder])
    (weights,) = registry.bundled()
    assert f"--selector {folder}" in "\n".join(registry.lines(weights))
    (folder / "model.safetensors").write_bytes(b"")
    assert doctor.checkpoint(folder)["works"] is False
