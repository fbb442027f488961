"""Bad input to the inference command: a clear message, status 2, and nothing that is complete is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_run import WORKER
from run_support import DataSet, Ended, mask_bytes

from glus.__main__ import guarded
from glus.config import InferenceConfig
from glus.errors import InputError
from glus.inference import infer_command

Meta = dict[str, Any]


def cats(meta: Meta) -> Any:
    return meta["videos"]["cats"]


def rename(meta: Meta, name: str) -> None:
    meta["videos"][name] = meta["videos"].pop("cats")


def set_text(text: Any) -> Callable[[Meta], None]:
    return lambda meta: cats(meta)["expressions"].update({"0": {"exp": text}})


# what is done to the expression file, and what the message must name
FAULTS: dict[str, tuple[Callable[[Meta], None], str]] = {
    "no videos": (lambda meta: meta.pop("videos"), "videos"),
    "videos is a list": (lambda meta: meta.update(videos=[]), "videos"),
    "no frames field": (lambda meta: cats(meta).pop("frames"), "frames"),
    "zero frames": (lambda meta: cats(meta).update(frames=[]), "frames"),
    "frames of numbers": (lambda meta: cats(meta).update(frames=[1, 2]), "frames"),
    "frame twice": (lambda meta: cats(meta).update(frames=["00000", "00000"]), "00000"),
    "frame outside": (lambda meta: cats(meta).update(frames=["../../x"]), "../../x"),
    "no expressions field": (lambda meta: cats(meta).pop("expressions"), "expressions"),
    "expression without text": (lambda meta: cats(meta)["expressions"].update({"0": {}}), "exp"),
    "text of another type": (set_text(5), "exp"),
    "empty text": (set_text("  "), "empty"),
    "text with [SEG]": (set_text("the [SEG] cat"), "[SEG]"),
    "text with <image>": (set_text("the <image> cat"), "<image>"),
    "video outside": (partial(rename, name="../cats"), "../cats"),
    "video absolute": (partial(rename, name="/cats"), "/cats"),
    "video in the run's records": (partial(rename, name=".glus"), ".glus"),
    "expression id outside": (lambda meta: cats(meta)["expressions"].update({"../9": {"exp": "x"}}), "../9"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_the_expression_file(
    fault: str, dataset: DataSet, run: Callable[..., Ended], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, told = FAULTS[fault]
    path = dataset.root / "mevis/valid_u/meta_expressions.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    assert infer(dataset, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") or "\nerror: " in error
    assert told in error
    assert not list((tmp_path / "out").rglob("*.png"))
    assert not [p for p in tmp_path.iterdir() if p.name not in ("data", "out")]


def infer(dataset: DataSet, tmp_path: Path, *extra: str) -> int:
    argv = ["--version", "fake", "--device", "cpu", "--dataset_dir", str(dataset.root)]
    argv += ["--vis_save_path", str(tmp_path / "out"), *extra]
    return guarded(partial(infer_command.main, worker_command=WORKER), argv)


def test_broken_json_loses_nothing(
    dataset: DataSet, run: Callable[..., Ended], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run().status == 0
    before = mask_bytes(tmp_path / "out")
    path = dataset.root / "mevis/valid_u/meta_expressions.json"
    whole = path.read_text()
    path.write_text(whole[:-9])
    assert infer(dataset, tmp_path) == 2
    assert "not valid JSON" in capsys.readouterr().err
    path.unlink()
    assert infer(dataset, tmp_path) == 2
    assert "meta_expressions.json" in capsys.readouterr().err
    assert mask_bytes(tmp_path / "out") == before
    path.write_text(whole)
    assert infer(dataset, tmp_path) == 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "kf.json"),
        ("{", "not valid JSON"),
        ("[]", "kf.json"),
        ('{"cats_0": null}', "cats_0"),
        ('{"cats_0": "99999"}', "cats_0"),
        ('{"cats/0": "00000"}', "no entry for any of the"),
    ],
)
def test_fault_in_the_key_frame_file(
    content: str | None, told: str, dataset: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kf.json"
    if content is not None:
        path.write_text(content)
    assert infer(dataset, tmp_path, "--use_kf", "--score_json", str(path)) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_worker_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    device, environments = infer_command.plan_workers("auto", None)
    assert device == "cuda"
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,5")
    _, environments = infer_command.plan_workers("cuda", 2)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == ["GPU-a", "GPU-b"]
    with pytest.raises(InputError, match="3 GPUs"):
        infer_command.plan_workers("cuda", 4)
    device, environments = infer_command.plan_workers("cpu", 4)
    assert device == "cpu"
    assert len(environments) == 4
    assert all("CUDA_VISIBLE_DEVICES" not in e for e in environments)


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    for workers, threads in ((1, "8"), (2, "4"), (3, "2"), (20, "1")):
        _, environments = infer_command.plan_workers("cpu", workers)
        assert [e["OMP_NUM_THREADS"] for e in environments] == [threads] * workers


def test_checkpoint_identity_sees_content_not_place(tmp_path: Path) -> None:
    for name, weights in (("a", b"x" * 3_000_000), ("b", b"x" * 3_000_000), ("c", b"x" * 2_999_999 + b"y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "b" / "README.md").write_text("about")
    a, b, c = (infer_command.checkpoint_identity(str(tmp_path / name)) for name in "abc")
    assert a == b != c
    assert infer_command.checkpoint_identity("owner/model") == "owner/model"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "file must be dict"),
        ({"format": "glus", "model": "7B"}, "model must be dict"),
        ({"model": "7B"}, None),
    ],
)
def test_configurations_of_checkpoints(content: Any, told: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    if told is None:  # of another program: how the model walks through a clip is not said there
        assert infer_command.stored_inference(str(tmp_path)) == InferenceConfig()
        return
    with pytest.raises(InputError, match=told):
        infer_command.stored_inference(str(tmp_path))
