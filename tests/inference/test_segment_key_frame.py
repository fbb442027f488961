"""`python -m glus segment --key_frame`, with and without a selector, and pictures of its scores."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_glus
from tiny_selector import tiny_selector

from glus.__main__ import guarded
from glus.api import GLUS
from glus.errors import InputError
from glus.inference import segment_command, starts
from glus.inference.curves import curve, score_chart
from glus.masks import read_mask
from glus.video import open_frames, write_video
from kfs.checkpoints import save_selector
from kfs.frame_scores import best_frame
from kfs.scoring import score_video

TEXTS = ["one thing", "another <b>"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip, a tiny GLUS, and a tiny selector that prefers other frames than the first."""
    folder = tmp_path_factory.mktemp("place")
    write_video(folder / "clip.mp4", np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8), 10)
    tiny_glus().save_pretrained(folder / "glus")
    for seed in range(20):
        frames, selector = open_frames(folder / "clip.mp4"), tiny_selector(seed)
        scores = score_video(selector.model, selector.tokenizer, frames, TEXTS)
        if 0 not in map(best_frame, scores):
            save_selector(selector, folder / "kfs")
            return folder
    raise AssertionError("every selector starts at frame 0")


def segment(place: Path, out: Path, *more: str) -> int:
    fixed = [str(place / "clip.mp4"), *TEXTS, "-o", str(out / "o.mp4"), "--masks", str(out / "m")]
    return guarded(segment_command.main, [*fixed, "--version", str(place / "glus"), "--device", "cpu", *more])


def check_masks(place: Path, out: Path, keys: list[int]) -> None:
    wanted = GLUS.from_pretrained(place / "glus", device="cpu").segment(place / "clip.mp4", TEXTS, key_frames=keys)
    for row in range(2):
        for index, name in enumerate(wanted.frame_names):
            assert (read_mask(out / "m" / str(row) / f"{name}.png") == wanted.masks[row, index].numpy()).all()
    assert len(open_frames(out / "o.mp4")) == len(wanted.frame_names)


def test_a_selector_chooses(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "scores.svg"
    options = ("--key_frame", "auto", "--selector", str(place / "kfs"), "--scores", str(picture))
    assert segment(place, tmp_path, *options) == 0
    found = re.findall(r": key frame (\d+), score (-?[\d.e-]+)", capsys.readouterr().out)
    names = open_frames(place / "clip.mp4").names
    keys = [names.index(name) for name, _ in found]
    assert len(keys) == 2
    assert 0 not in keys
    check_masks(place, tmp_path, keys)
    root = ET.fromstring(picture.read_text())  # well-formed, whatever the sentences say
    assert f"another <b>: key frame {found[1][0]}, score {found[1][1]}" in list(root.itertext())


def test_a_frame_by_name_or_number(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment(place, tmp_path, "--key_frame", "3") == 0
    check_masks(place, tmp_path, [3, 3])
    assert segment(place, tmp_path, "--key_frame", "6") == 2
    assert "'6' is no frame of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--key_frame", "auto"), "--key_frame auto needs --selector"),
        (("--selector", "kfs"), "--selector chooses frames for --key_frame auto"),
        (("--key_frame", "2", "--selector", "kfs"), "--selector chooses frames for --key_frame auto"),
        (("--key_frame", "2", "--scores", "s.svg"), "needs --key_frame auto and --selector"),
        (("--key_frame", "auto", "--selector", "kfs", "--scores", "s.png"), "must end in .svg"),
        (("--key_frame", "auto", "--selector", "{}/none"), "none"),
        (("--key_frame", "auto", "--selector", "{}/glus"), "no key-frame selector"),
    ],
)
def test_options_that_do_not_fit(
    more: tuple[str, ...], told: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(place, tmp_path, *(word.format(place) for word in more)) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "o.mp4").exists()


def test_pictures_of_scores() -> None:
    small = ET.fromstring(curve([-4.0, 2.0, -1.0], "score", mark=1, unit=False))
    points = [tuple(map(float, point.split(","))) for point in small.find("polyline").get("points").split()]
    assert points == [(1, 25), (60, 1), (119, 13)]
    dot = small.find("circle")
    assert (float(dot.get("cx")), float(dot.get("cy"))) == points[1]
    assert ET.fromstring(curve([0.5, 0.5], "J")).find("circle") is None
    assert ET.fromstring(curve([0.7], "score", mark=0, unit=False)).find("circle").get("cy") == "1.0"
    chart = ET.fromstring(score_chart([[0.0, 1.0], [0.5, 0.25]], ["a", "b"], TEXTS, [1, 0]))
    lines = chart.findall("{*}polyline")
    assert len(lines) == 2
    dots = [(dot.get("cx"), dot.get("cy")) for dot in chart.findall("{*}circle")]
    assert ",".join(dots[0]) == lines[0].get("points").split()[1]
    assert ",".join(dots[1]) == lines[1].get("points").split()[0]
    with pytest.raises(InputError, match="no frame"):
        starts.find_start(
            segment_command.parser().parse_args(["v", "t", "-o", "o", "--key_frame", "x"]),
            open_frames(np.zeros((2, 8, 8, 3), np.uint8)),
            ["t"],
        )
