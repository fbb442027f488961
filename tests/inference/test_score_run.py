"""Runs of `python -m kfs score`: complete, resumable, and key frames that GLUS starts from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_score_run
import pytest
from run_support import DataSet, Ended, Launch, summary, workers_of
from tiny_selector import tiny_selector

from glus.__main__ import guarded
from glus.inference.queries import Query
from glus.inference.selection import load_key_frames
from glus.video import open_frames
from kfs import key_frames, score_command
from kfs.checkpoints import save_selector
from kfs.scoring import score_video

ROOT = Path(__file__).resolve().parents[2]
FAKE = (sys.executable, str(Path(__file__).with_name("fake_score_run.py")))
Run = Callable[..., Ended]


@pytest.fixture
def dataset(tmp_path: Path) -> DataSet:
    videos = {
        "boats_1": ([f"{i:05d}" for i in range(13)], {"0": "the red boat", "07": "the boat unseen"}),
        "cats": ([f"{i:05d}" for i in range(0, 45, 5)], {"0": "the black cat", "1": "What runs?", "2": "the cat"}),
        "still": (["3"], {"0": "the one thing"}),
    }
    return DataSet(tmp_path / "data", videos).write()


def score_files(save: Path) -> dict[str, bytes]:
    return {path.relative_to(save).as_posix(): path.read_bytes() for path in save.glob("[!.]*/**/*.json")}


def command(dataset: DataSet, save: Path, *extra: str) -> int:
    """In this process, as `run` would start it."""
    places = ["--dataset_dir", str(dataset.root), "--vis_save_path", str(save)]
    return guarded(score_command.main, ["--version", "fake", "--device", "cpu", *places, *extra])


def expected_files(dataset: DataSet) -> set[str]:
    return {name.removesuffix("png") + "json" for name in dataset.mask_files}


def test_every_frame_and_both_forms(
    dataset: DataSet, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Defects 10, 11, 19 and 26: ids stay text, each score is written once, key frames follow in the same run."""
    save = tmp_path / "out"
    assert run("--limit", "2", command=FAKE).status == 0
    few = json.loads((save / "key_frames.json").read_text())
    assert few.keys() == {"boats_1_0", "boats_1_07"}
    ended = run(command=FAKE)
    assert ended.status == 0, ended.err
    assert str(save / "key_frames.json") in ended.out
    files = score_files(save)
    assert files.keys() == expected_files(dataset)
    assert all(set(json.loads(text)) == {"iou"} for text in files.values())
    facts = summary(save)
    assert (facts["complete"], facts["items"], facts["frames_this_run"]) == (True, 6, len(files) - 26)
    scores = key_frames.read_scores(save)
    assert json.loads((save / "key_frames.json").read_text()) == key_frames.legacy_form(key_frames.choose(scores))
    detailed = json.loads((save / "key_frame_scores.json").read_text())
    assert detailed["boats_1"]["07"]["scores"] == scores["boats_1"]["07"]
    table = load_key_frames(save / "key_frames.json")
    for video, (frames, expressions) in dataset.videos.items():
        for exp_id in expressions:
            found = table.index(video, exp_id, frames)
            assert frames[found] == detailed[video][exp_id]["key_frame"]
    assert table.missing == 0
    assert command(dataset, save, "--max_image_token", "4") == 2
    told = capsys.readouterr().err
    assert "holds scores of a run with other settings" in told
    assert "max_image_token: None there, 4 now" in told


def test_killed_and_resumed(dataset: DataSet, launch: Launch, run: Run, tmp_path: Path) -> None:
    """Every byte follows from the data, however often the run was stopped."""
    expected = {}
    for video, (names, expressions) in dataset.videos.items():
        frames = open_frames([dataset.frame(video, name) for name in names])
        for row, one in fake_score_run.scores(frames, [Query(text) for text in expressions.values()]):
            text = json.dumps({"iou": one.score})
            expected[f"{video}/{list(expressions)[row]}/{names[one.frame]}.json"] = text.encode()
    process = launch(seconds=0.1, command=FAKE)
    deadline = time.monotonic() + 60
    while not score_files(tmp_path / "out"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    process.kill()
    process.communicate(timeout=30)
    kept = score_files(tmp_path / "out")
    assert kept.items() < expected.items(), "what is visible must be final"
    assert not (tmp_path / "out/key_frames.json").exists()
    assert run(command=FAKE).status == 0
    assert score_files(tmp_path / "out") == expected
    assert 0 < summary(tmp_path / "out")["frames_this_run"] <= len(expected) - len(kept)


def test_a_score_that_is_no_number_costs_its_expression_only(dataset: DataSet, run: Run, tmp_path: Path) -> None:
    """Defect 20."""
    path = dataset.root / "mevis/valid_u/meta_expressions.json"
    whole = path.read_text()
    path.write_text(whole.replace("the black cat", "the broken cat"))
    ended = run(command=FAKE)
    assert ended.status == 2
    assert "cats/0: the score of frame 00010 is nan" in ended.err
    assert "no " in ended.out
    save = tmp_path / "out"
    assert score_files(save).keys() == {name for name in expected_files(dataset) if not name.startswith("cats/0")}
    assert summary(save)["complete"] is False
    assert not (save / "key_frames.json").exists()


@pytest.mark.parametrize(
    ("names", "extra", "told"),
    [
        (["a", "b"], (), "frame names must be numbers"),
        (["1", "01"], (), "no two alike"),
        (["1", "2"], ("--max_image_token", "0"), "--max_image_token must be at least 1"),
        (["1", "2"], ("--workers", "0"), "--workers must be at least 1"),
    ],
)
def test_refused_before_any_work(
    names: list[str], extra: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataSet(tmp_path / "data", {"v": (names, {"0": "it"})}).write()
    assert command(data, tmp_path / "out", *extra) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def script(name: str, *argv: str, **environment: str) -> Ended:
    inherited = {k: v for k, v in os.environ.items() if k not in ("WORKERS", "NUM_GPUS", "SCORE_JSON", "OUT_DIR")}
    ended = subprocess.run(
        ["bash", str(ROOT / name), *argv],
        env={**inherited, "VENV": str(Path(sys.executable).parents[1]), **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def test_launcher(dataset: DataSet, tmp_path: Path) -> None:
    """Defects 8, 10, 18 and 25: relative paths, the scripts' own names, a selector that holds its CLIP."""
    selector = tiny_selector()
    save_selector(selector, tmp_path / "kfs")
    fixed = {"MODEL": str(tmp_path / "kfs"), "DATA_DIR": str(dataset.root), "NUM_GPUS": "0"}
    out = {"OUT_DIR": os.path.relpath(tmp_path / "o")}
    ended = script("kfs/scripts/inference_kfs.sh", "--precision", "fp32", **fixed, **out)
    assert ended.status == 0, ended.err
    save = tmp_path / "o" / "mevis_valid_u_scores"
    assert score_files(save).keys() == expected_files(dataset)
    detailed = json.loads((save / "key_frame_scores.json").read_text())
    for video, (names, expressions) in dataset.videos.items():
        frames = open_frames([dataset.frame(video, name) for name in names])
        wanted = score_video(selector.model, selector.tokenizer, frames, list(expressions.values()))
        for exp_id, scores in zip(expressions, wanted, strict=True):
            assert list(detailed[video][exp_id]["scores"].values()) == pytest.approx(scores, abs=1e-5)


def test_the_launcher_explains_itself() -> None:
    ended = script("kfs/scripts/inference_kfs.sh", "--help")
    assert ended.status == 0
    for name in ("MODEL", "DATA_DIR", "VAL_SET", "SET_NAME", "SAVE_DIR", "OUT_DIR", "NUM_GPUS"):
        assert name in ended.out
    assert script("kfs/scripts/inference_kfs.sh", VENV="/none").status == 2
