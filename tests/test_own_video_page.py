"""docs/own_video.md: every command and the Python example run, on a small clip with a small model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tiny import tiny_glus
from video_files import write_file

from glus.__main__ import main
from glus.video import open_frames

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "own_video.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_glus().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "clip.mp4", frames=16, audio="aac")
    return tmp_path


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]


# What chooses key frames has to be trained first; tests/selector runs it.
@pytest.mark.parametrize("line", [line for line in commands() if "--selector" not in line])
def test_commands(line: str, checkpoint: Path, here: Path) -> None:
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "glus"]
    assert main([*words[3:], "--version", str(checkpoint), "--device", "cpu"]) == 0
    made = {path.name for path in here.iterdir()} - {"clip.mp4"}
    wanted = {words[i + 1] for i, word in enumerate(words) if word in WRITING}
    assert made == wanted
    assert len(open_frames(here / words[words.index("-o") + 1])) == (6 if "--fps" in words else 16)


WRITING = ("-o", "--masks", "--palette", "--rle", "--boxes", "--cutouts")


def test_python(checkpoint: Path, here: Path) -> None:
    (code,) = blocks("python")
    assert '"checkpoints/glus-tiny"' in code
    exec(code.replace("checkpoints/glus-tiny", str(checkpoint)), {})
    made = {path.name for path in here.iterdir()} - {"clip.mp4"}
    assert made == {*("overlay.mp4", "masks", "palette", "masks.json", "cutouts", "boxes.csv")}


def test_every_option_of_the_page_is_explained() -> None:
    used = {word for line in commands() for word in shlex.split(line) if word.startswith("-")} - {"-m"}
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    assert not {word for word in used if f"`{word}" not in text} - {"--selector"}
