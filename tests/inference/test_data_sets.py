"""All five data sets through the command: odd names and orders, links, relative paths with spaces."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_run import WORKER
from run_support import mask_bytes

from glus.__main__ import guarded
from glus.data.datasets import DATASETS
from glus.inference import infer_command
from glus.masks import read_mask

SPLITS = {
    "mevis": "valid_u",
    "reasonvos": "valid",
    "refyoutube_vos": "valid",
    "davis17": "valid",
    "revos": "valid",
}
# frames not in order, not consecutive, with odd names; one video of a single frame; a long and a foreign sentence
FRAMES = {"a video.v2": ["00012", "00003", "00007"], "b": ["img (1)", "img_é", "0", "x"], "solo": ["5"]}
TEXTS = ["the dog. ", "左边的红色汽车", "very " * 300 + "long", 'what is {0} 100% \\ "quoted" | <b>?']
KEY_FRAME = ("b", "img_é")


def write_set(root: Path, dataset: str) -> dict[str, list[str]]:
    """Write frames and expressions; returns the frame names of each video."""
    layout, split = DATASETS[dataset], SPLITS[dataset]
    videos = {f"source/{name}" if layout.nested_videos else name: frames for name, frames in FRAMES.items()}
    meta: dict[str, Any] = {}
    for number, (video, frames) in enumerate(videos.items()):
        folder = root / layout.frames.format(split=split) / video
        folder.mkdir(parents=True)
        for name in frames:
            pixels = np.random.default_rng([number, *name.encode()]).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / f"{name}.jpg"), pixels)
        listed = [{"exp_id": 7 - i, "exp_text": text, "obj_id": 1} for i, text in enumerate(TEXTS)]
        keyed = {str(7 - i): {"exp": text} for i, text in enumerate(TEXTS)}
        meta[video] = {"frames": frames, "source": "MOSE", "expressions": listed if layout.listed else keyed}
    path = root / layout.expressions.format(split=split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": meta}, ensure_ascii=False), encoding="utf-8")
    return videos


def infer(dataset: str, *extra: str) -> int:
    argv = ["--version", "fake", "--device", "cpu", "--val_set", dataset, "--set_name", SPLITS[dataset], *extra]
    return guarded(partial(infer_command.main, worker_command=WORKER), argv)


@pytest.mark.parametrize("dataset", SPLITS)
def test_every_mask_lies_where_it_belongs(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths with spaces from another folder, the data set behind a link, plain and from key frames.

    D1, D2: both passes keep the frames' own names. D21, D22: stored ids name the masks and find the key frames.
    """
    real = tmp_path / "real data"
    videos = write_set(real, dataset)
    here = tmp_path / "work dir"
    here.mkdir()
    (here / "my data").symlink_to(real)
    monkeypatch.chdir(here)
    assert infer(dataset, "--dataset_dir", "my data", "--vis_save_path", "my out") == 0
    expected = {
        f"{video}/{7 - i}/{name}.png"
        for video, frames in videos.items()
        for i in range(len(TEXTS))
        for name in frames
    }
    assert mask_bytes(here / "my out").keys() == expected
    video = next(name for name in videos if name.endswith(KEY_FRAME[0]))
    (here / "keys.json").write_text(json.dumps({f"{video}_6": KEY_FRAME[1]}))
    keyed = ["--use_kf", "--score_json", "keys.json", "--vis_save_path", "from keys"]
    assert infer(dataset, "--dataset_dir", "my data/", *keyed) == 0
    assert mask_bytes(here / "from keys").keys() == expected
    plain, other = mask_bytes(here / "my out"), mask_bytes(here / "from keys")
    changed = {name for name in expected if plain[name] != other[name]}
    assert changed
    assert {os.path.dirname(name) for name in changed} == {f"{video}/6"}
    # the stand-in draws what is brighter than a level, and draws a little more in its backward pass
    order = videos[video] if DATASETS[dataset].listed else sorted(videos[video])
    passed = order[: order.index(KEY_FRAME[1]) + 1]
    assert {Path(name).stem for name in changed} <= set(passed)
    for name in order:
        forward, back = (read_mask(here / save / video / "6" / f"{name}.png") for save in ("my out", "from keys"))
        assert (forward <= back).all()
