"""Score files to key frames, and to where GLUS starts (conformance kfs/README.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from glus.inference.selection import load_key_frames
from kfs import key_frames


def write_tree(folder: Path, tree: dict[str, str]) -> Path:
    for name, text in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_tree(golden: Callable[[str], Path], tmp_path: Path) -> None:
    data = json.loads((golden("kfs") / "extraction.json").read_text())
    scores = key_frames.read_scores(write_tree(tmp_path, data["tree"]))
    wanted = dict(data["original_result"])
    for video, expressions in scores.items():
        for expression, frames in expressions.items():
            if max(frames.values()) <= -1000:  # the original's start value, below which it names no frame
                wanted[f"{video}_{expression}"] = min(
                    map(int, (f for f in frames if frames[f] == max(frames.values())))
                )
    assert wanted.keys() == data["original_result"].keys()
    assert key_frames.legacy_form(key_frames.choose(scores)) == wanted


def test_score_files_of_the_end_to_end_run(golden: Callable[[str], Path], tmp_path: Path) -> None:
    root = golden("kfs")
    data = json.loads((root / "scores.json").read_text())
    write_tree(tmp_path, data["score_files"])
    (epoch,) = {Path(name).parents[2] for name in data["score_files"]}
    read = key_frames.read_scores(tmp_path / epoch)
    assert sum(len(frames) for video in read.values() for frames in video.values()) == len(data["items"])
    for item in data["items"]:
        video, expression, frame = Path(item["output"]).with_suffix("").parts[-3:]
        assert read[video][expression][frame] == item["score"]
    out = tmp_path / "key_frames.json"
    arguments = [str(tmp_path / epoch), "--out", str(out), "--meta", str(root / "meta_expressions.json")]
    assert key_frames.main(arguments) == 0
    assert json.loads(out.read_text()) == data["key_frame_json"]
    videos = json.loads((root / "meta_expressions.json").read_text())["videos"]
    table = load_key_frames(out)
    starts = {
        f"{video}_{expression}": table.index(video, expression, entry["frames"])
        for video, entry in videos.items()
        for expression in entry["expressions"]
    }
    assert starts == data["glus_start_index"]
