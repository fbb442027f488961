"""The commands with a real, tiny model: what the stand-in of `test_run` cannot show."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from run_support import DataSet, Ended, Launch, mask_bytes
from tiny import tiny_glus
from video_files import heard, write_file

from glus.__main__ import guarded
from glus.api import GLUS
from glus.inference import segment_command
from glus.masks import read_mask
from glus.video import open_frames, select, times_of, write_video

REAL = (sys.executable, "-m", "glus", "infer")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_glus().save_pretrained(folder)
    return folder


def test_masks_equal_those_of_the_python_interface(
    dataset: DataSet, run: Callable[..., Ended], checkpoint: Path, tmp_path: Path
) -> None:
    ended = run("--version", str(checkpoint), command=REAL)
    assert ended.status == 0, ended.err
    assert mask_bytes(tmp_path / "out").keys() == dataset.mask_files
    frames, expressions = dataset.videos["cats"]
    files = [dataset.frame("cats", name) for name in frames]
    expected = GLUS.from_pretrained(checkpoint, device="cpu").segment(files, list(expressions.values())).masks
    for row, exp_id in enumerate(expressions):
        for column, name in enumerate(frames):
            mask = read_mask(tmp_path / "out" / "cats" / exp_id / f"{name}.png")
            assert (mask == expected[row, column].numpy()).all()


def test_killed_and_resumed(launch: Launch, run: Callable[..., Ended], checkpoint: Path, tmp_path: Path) -> None:
    version = ("--version", str(checkpoint), "--limit", "6")
    assert run(*version, save="calm", command=REAL).status == 0
    expected = mask_bytes(tmp_path / "calm")
    dice = random.Random(2)
    for kill in range(3):
        process = launch(*version, command=REAL)
        deadline = time.monotonic() + 180
        before = len(mask_bytes(tmp_path / "out"))
        while len(mask_bytes(tmp_path / "out")) <= before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(dice.random() * 0.1)
        process.kill()
        process.communicate(timeout=30)
        assert mask_bytes(tmp_path / "out").items() <= expected.items(), f"after kill {kill}"
    assert run(*version, command=REAL).status == 0
    assert mask_bytes(tmp_path / "out") == expected


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_video(
        tmp_path / "clip.mp4", np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8), 10
    )
    return tmp_path / "clip.mp4"


def segment(*argv: object) -> int:
    return guarded(segment_command.main, [*map(str, argv), "--device", "cpu"])


def test_segment_writes_video_and_masks(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "o.mp4"
    assert (
        segment(
            *(clip, "one thing", "another", "-o", out, "--captions"),
            *("--masks", tmp_path / "m", "--version", checkpoint),
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "5 frames, 2 sentences" in shown
    assert str(out) in shown
    video = open_frames(out)
    assert len(video) == 5
    assert video.fps == 10
    assert video[0].shape[0] > 48  # a caption below
    expected = GLUS.from_pretrained(checkpoint, device="cpu").segment(clip, ["one thing", "another"]).masks
    for row in range(2):
        for i in range(5):
            assert (read_mask(tmp_path / "m" / str(row) / f"{i:05d}.png") == expected[row, i].numpy()).all()


def test_segment_writes_every_kind_of_a_part(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A choice of frames, the sound under them, and all exports, which are those of the Python interface."""
    path = write_file(tmp_path / "clip.mp4", frames=12, audio="aac")
    files = [word for kind in ("rle", "boxes") for word in (f"--{kind}", tmp_path / f"out/{kind}")]
    folders = [word for kind in ("palette", "cutouts") for word in (f"--{kind}", tmp_path / kind)]
    assert (
        segment(
            *(path, "one thing", "another", "-o", tmp_path / "out" / "o.mp4", "--version", checkpoint),
            *("--start", "0:00.2", "--end", "1", "--fps", "5", "--max_frames", "3", "--resize", "24"),
            *("--cutout_form", "webm", "--rle_form", "coco", *files, *folders),
        )
        == 0
    )
    assert "3 frames, 2 sentences" in capsys.readouterr().out
    frames = select(open_frames(path), start=0.2, end=1, fps=5, max_frames=3, resize=24)
    assert frames.names == ["00002", "00006", "00008"]
    video = open_frames(tmp_path / "out" / "o.mp4")
    assert video[0].shape == (18, 24, 3)
    assert times_of(video) == (0, Fraction(2, 5), Fraction(3, 5))
    assert len(heard(tmp_path / "out" / "o.mp4")[1]) / 44100 == pytest.approx(0.7, abs=0.06)
    result = GLUS.from_pretrained(checkpoint, device="cpu").segment(frames, ["one thing", "another"])
    result.save_rle(tmp_path / "rle", form="coco")
    result.save_boxes(tmp_path / "boxes")
    result.save_palette(tmp_path / "again")
    for kind in ("rle", "boxes"):
        assert (tmp_path / "out" / kind).read_bytes() == (tmp_path / kind).read_bytes()
    assert mask_bytes(tmp_path / "palette") == mask_bytes(tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "cutouts").iterdir()) == ["0.webm", "1.webm"]


def test_segment_on_a_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks carry the names of the frames, in natural order; relative paths, spaces, a trailing slash."""
    names = ["shot 9.é", "shot 10", "shot 100"]
    (tmp_path / "my clip").mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    for name, frame in zip(names, pixels, strict=True):
        cv2.imwrite(str(tmp_path / "my clip" / f"{name}.png"), frame)
    (tmp_path / "my clip" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert (
        segment("my clip/", "one thing", "-o", "o.mp4", "--masks", "my masks", "--version", f"{checkpoint}/") == 0
    )
    assert mask_bytes(tmp_path / "my masks").keys() == {f"0/{name}.png" for name in names}
    expected = (
        GLUS.from_pretrained(checkpoint, device="cpu").segment(pixels[..., ::-1].copy(), ["one thing"]).masks
    )
    for mask, name in zip(expected[0].numpy(), names, strict=True):
        assert (read_mask(tmp_path / "my masks" / "0" / f"{name}.png") == mask).all()


def test_segment_never_replaces_its_input(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = clip.read_bytes()
    (tmp_path / "link.mp4").symlink_to(clip)
    for output in (clip, tmp_path / "link.mp4"):
        for more in ((), ("--masks", tmp_path, "--rle", output)):
            place = tmp_path / "other.mp4" if more else output
            assert segment(clip, "one thing", "-o", place, *more, "--version", checkpoint) == 2
            assert "is the video itself" in capsys.readouterr().err
    assert clip.read_bytes() == before


def test_segment_counts_frames_without_an_answer(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_glus(answers_seg=False).save_pretrained(tmp_path / "mute")
    assert segment(clip, "one thing", "-o", tmp_path / "o.mp4", "--version", tmp_path / "mute") == 0
    assert "5 of 5 masks are blank" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"source": "none.mp4"}, "none.mp4"),
        ({"text": " "}, "sentence 1"),
        ({"text": "the [SEG]"}, "SEG"),
        ({"text": "an <image>"}, "image"),
        ({"-o": "o.txt"}, "must end in"),
        ({"-o": "clip.mp4/o.mp4"}, "cannot write"),
        ({"--version": "none"}, "none"),
        ({"--mem_stride": "0"}, "mem_stride"),
        ({"--fps": "0"}, "fps must be"),
        ({"--start": "1:00"}, "second 60 to the end"),
        ({"--boxes": "clip.mp4/b.csv"}, "cannot write"),
    ],
)
def test_segment_names_what_is_wrong(
    change: dict[str, str],
    told: str,
    clip: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = {
        name: str(tmp_path / value)
        for name, value in change.items()
        if name in ("source", "-o", "--version", "--boxes")
    }
    values = {"source": str(clip), "text": "it", "-o": str(tmp_path / "o.mp4"), "--version": str(checkpoint)}
    values |= change | place
    options = [word for name, value in values.items() if name.startswith("-") for word in (name, value)]
    assert segment(values["source"], values["text"], *options) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.glob("*o.mp4"))


def script(name: str, *argv: str, **environment: str) -> Ended:
    """Run a launcher with this interpreter's environment."""
    venv = Path(sys.executable).parents[1]
    inherited = {k: v for k, v in os.environ.items() if k not in ("WORKERS", "NUM_GPUS", "SCORE_JSON", "OUT_DIR")}
    ended = subprocess.run(
        ["bash", str(ROOT / "scripts" / name), *argv],
        env={**inherited, "VENV": str(venv), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def test_launcher_reads_its_variables(dataset: DataSet, checkpoint: Path, tmp_path: Path) -> None:
    ended = script(
        "inference.sh",
        *("--mem_stride", "2", "--limit", "2"),
        MODEL=str(checkpoint),
        DATA_DIR=str(dataset.root),
        SAVE_DIR=str(tmp_path / "save"),
        VAL_SET="mevis",
        SET_NAME="valid_u",
        NUM_GPUS="0",
    )
    assert ended.status == 0, ended.err
    assert mask_bytes(tmp_path / "save").keys() == {
        f for f in dataset.mask_files if f.startswith(("boats/0", "boats/1"))
    }
    assert '"mem_stride": 2' in (tmp_path / "save/.glus/run.json").read_text()


def test_key_frame_launcher_passes_everything_on(dataset: DataSet, checkpoint: Path, tmp_path: Path) -> None:
    """D40: in the original a lost continuation drops every option after --score_json.

    The file is of the selector's legacy form, frames by number.
    """
    (tmp_path / "kf.json").write_text('{"cats_0": 20, "boats_0": 3}')
    ended = script(
        "inference_kf.sh",
        *("--precision", "fp32", "--limit", "4"),
        MODEL=str(checkpoint),
        DATA_DIR=str(dataset.root),
        OUT_DIR=str(tmp_path / "o"),
        SCORE_JSON=str(tmp_path / "kf.json"),
        WORKERS="1",
        NUM_GPUS="0",
    )
    assert ended.status == 0, ended.err
    save = tmp_path / "o" / "mevis_valid_u_kf"
    assert {name.split("/")[0] for name in mask_bytes(save)} == {"boats", "cats"}
    assert len(mask_bytes(save)) == 3 * 7 + 9
    assert script("inference_kf.sh").status == 2


def test_launcher_without_an_environment(tmp_path: Path) -> None:
    ended = script("inference.sh", VENV=str(tmp_path))
    assert ended.status == 2
    assert "run bash scripts/setup.sh" in ended.err


@pytest.mark.parametrize("name", ["setup.sh", "inference.sh", "inference_kf.sh", "quickstart.sh", "test.sh"])
def test_scripts_explain_themselves(name: str) -> None:
    ended = script(name, "--help")
    assert ended.status == 0
    assert "usage:" in ended.out
    assert subprocess.run(["bash", "-n", str(ROOT / "scripts" / name)]).returncode == 0
