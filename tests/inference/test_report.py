"""The HTML report: complete, self-contained, and safe against what data files say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from run_support import DataSet, Ended

from glus.__main__ import guarded
from glus.data.datasets import load_records
from glus.data.records import Record
from glus.errors import InputError
from glus.evaluation.expression_files import read_videos
from glus.masks import encode_rle, write_mask_png
from glus.report import command as report
from glus.report import pictures
from glus.report.runs import Run, read_truth
from glus.video import open_frames

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags, addresses and text of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def write(dataset: DataSet, run: Callable[..., Ended], tmp_path: Path) -> Callable[..., int]:
    assert run().status == 0

    def command(*extra: str) -> int:
        fixed = ["--dataset_dir", str(dataset.root), "--vis_save_path", str(tmp_path / "out")]
        return guarded(report.main, [*fixed, "--out", str(tmp_path / "report"), *extra])

    return command


def scores(dataset: DataSet) -> dict:
    rows = [
        {"video": v, "exp_id": e, "J": 0.25, "F": 0.75, "J&F": 0.5, "per_frame": {"J": [0.25] * len(frames)}}
        for v, (frames, expressions) in dataset.videos.items()
        for e in expressions
    ]
    return {"J": 0.25, "F": 0.75, "J&F": 0.5, "expressions": rows}


def test_report_shows_every_expression(dataset: DataSet, write: Callable[..., int], tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(scores(dataset)))
    assert write("--eval_json", str(path)) == 0
    text = (tmp_path / "report/report.html").read_text()
    page = Page(text)
    for frames, expressions in dataset.videos.values():
        for sentence in expressions.values():
            assert sentence in page.words
        assert frames[0] in page.words
    assert "50.00" in page.words
    assert page.words.count("J&F 50.0") == 10
    assert text.count('aria-label="J over the frames"') == 10
    assert text.count('aria-label="mean J over the clip"') == 1  # the set states no types
    rows, cases = 9 * 4 + 1, 2 * 4  # the clip of one frame shows it once; the best and the worst
    assert page.tags.count("img") == rows + cases
    for address in page.addresses:
        inside = address.startswith("data:image/jpeg;base64,") or f'id="{address[1:]}"' in text
        assert inside or (tmp_path / "report" / address).is_file()
    video = open_frames(tmp_path / "report/videos/cats/1.mp4")
    assert len(video) == len(dataset.videos["cats"][0])


def test_report_without_scores(write: Callable[..., int], tmp_path: Path) -> None:
    assert write() == 0
    assert "not scored" in Page((tmp_path / "report/report.html").read_text()).words


def test_texts_are_escaped(dataset: DataSet, write: Callable[..., int], tmp_path: Path) -> None:
    path = dataset.root / "mevis/valid_u/meta_expressions.json"
    path.write_text(path.read_text().replace("a sail", "<script>alert(1)</script>"))
    assert write("--title", "<b>") == 0
    page = Page((tmp_path / "report/report.html").read_text())
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.words


def test_true_masks_are_outlined(dataset: DataSet, run: Callable[..., Ended], tmp_path: Path) -> None:
    path = dataset.root / "mevis/valid_u/meta_expressions.json"
    meta = json.loads(path.read_text())
    meta["videos"]["still"]["expressions"]["0"]["anno_id"] = [4, 5]
    meta["videos"]["dogs"]["expressions"]["0"]["anno_id"] = 6
    meta["videos"]["dogs"]["frames"].reverse()  # mask lists follow the file, records are sorted
    path.write_text(json.dumps(meta))
    assert run().status == 0
    write_mask_png(tmp_path / "out/still/0/frame_3.png", np.zeros((48, 64), bool))
    mask = np.zeros((48, 64), bool)
    mask[10:30, 20:40] = True
    code = encode_rle(mask)
    (tmp_path / "masks.json").write_text(json.dumps({"4": [code], "5": [None], "6": [code, *[None] * 4]}))
    records = {(r.video, r.exp_id): r for r in load_records("mevis", dataset.root, "valid_u")}
    record = records["still", "0"]

    def true(record: Record, index: int) -> np.ndarray | None:
        return read_truth(read_videos(path), tmp_path / "masks.json").mask(record, index, (48, 64, 3))

    assert true(records["cats", "0"], 0) is None
    assert [true(records["dogs", "0"], i).sum() for i in range(5)] == [0, 0, 0, 0, 400]
    outline = true(record, 0)
    assert (outline == mask).all()
    for codes, told in ([], "0 masks for 1 frames"), (None, "5 must be list"), ([5], "frame 0 of 5"):
        (tmp_path / "masks.json").write_text(json.dumps({"4": [code], "5": codes}))
        with pytest.raises(InputError, match=told):
            true(record, 0)
    frame = np.zeros((48, 64, 3), np.uint8)
    predicted = Run("run", tmp_path / "out", (255, 0, 0)).predicted(record, 0, frame.shape)
    drawn = pictures.draw(frame, predicted, outline, (255, 0, 0))
    assert drawn[10, 25].tolist() == [255, 255, 255]
    assert drawn[20, 30].tolist() == [0, 0, 0]


def test_faults_are_named(
    dataset: DataSet, write: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mask_png(tmp_path / "out/cats/0/00000.png", np.zeros((5, 6), bool))
    assert write() == 2
    assert re.search(r"cats/0/00000\.png is 6x5", capsys.readouterr().err)
    (tmp_path / "out/cats/0/00000.png").unlink()
    assert write() == 2
    assert "00000.png" in capsys.readouterr().err
    assert write("--limit", "-1") == 2
    assert "--limit must be at least 1" in capsys.readouterr().err
    assert write("--eval_json", str(tmp_path / "nowhere.json")) == 2
    (tmp_path / "scores.json").write_text(json.dumps({**scores(dataset), "expressions": [{}]}))
    assert write("--eval_json", str(tmp_path / "scores.json")) == 2
    assert "expressions[0] has no field 'video'" in capsys.readouterr().err
    broken = scores(dataset)
    broken["expressions"][0]["per_frame"]["J"][0] = "high"
    (tmp_path / "scores.json").write_text(json.dumps(broken))
    assert write("--eval_json", str(tmp_path / "scores.json")) == 2
    assert "per_frame.J must be float or int" in capsys.readouterr().err
    broken = scores(dataset)
    del broken["expressions"][0]["J"]
    (tmp_path / "scores.json").write_text(json.dumps(broken))
    assert write("--eval_json", str(tmp_path / "scores.json")) == 2
    assert "expressions[0] has no field 'J'" in capsys.readouterr().err


def test_key_frames_and_the_scores_that_chose_them(
    dataset: DataSet, write: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = dataset.videos["cats"][0]
    scores = {name: -0.5 + (i == 5) for i, name in enumerate(names)}
    entry = {"key_frame": names[5], "score": 0.5, "scores": scores}
    path = tmp_path / "key_frame_scores.json"
    path.write_text(json.dumps({"cats": {"1": entry}}))
    assert write("--key_frames", str(path)) == 0
    text = (tmp_path / "report/report.html").read_text()
    page = Page(text)
    assert page.words.count("key frame 00025") == 1  # of that expression alone
    assert page.words.count("00025, key frame") == 1  # shown, although no multiple of the others
    assert text.count('aria-label="key-frame score over the frames"') == 1
    for fault, told in (
        ({**entry, "key_frame": "7"}, "other frames"),
        ({**entry, "scores": {"1": 2}}, "other frames"),
    ):
        path.write_text(json.dumps({"cats": {"1": fault}}))
        assert write("--key_frames", str(path)) == 2
        assert told in capsys.readouterr().err
