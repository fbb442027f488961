"""The report on several runs: figures from the masks themselves, the cases it picks, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glus.__main__ import guarded
from glus.data.datasets import load_records
from glus.data.records import Record
from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.writer import SetArguments, write_set
from glus.evaluation.expression_files import Entry, Video, read_videos
from glus.masks import Mask, write_mask_png
from glus.report import command, figures, page
from glus.report.runs import Run, Scores, group, read_truth

CONFIG = SyntheticConfig(
    width=96, height=80, frames=8, min_objects=3, max_objects=3, min_sentences=6, max_sentences=6
)
COUNT = 12
SPLIT = "data/mevis/valid_u"


def write_masks(folder: Path, records: list[Record], world: Path, change: Callable[[Mask, int], Mask]) -> None:
    """The true masks as a run's, each changed; it is told the number of the expression."""
    truth = read_truth(read_videos(world / SPLIT / "meta_expressions.json"), world / SPLIT / "mask_dict.json")
    for number, record in enumerate(records):
        for i, name in enumerate(record.frames):
            mask = truth.mask(record, i, (CONFIG.height, CONFIG.width))
            path = folder / record.video / record.exp_id / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask_png(path, change(mask, number))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set, a run that is right, and one that finds nothing where the number of the expression is odd."""
    world = tmp_path_factory.mktemp("compare")
    write_set(world / "data", SetArguments("valid_u", 2, 1, CONFIG))
    records = load_records("mevis", world / "data", "valid_u")
    assert len(records) == COUNT
    write_masks(world / "right", records, world, lambda mask, number: mask)
    write_masks(world / "half", records, world, lambda mask, number: mask & (number % 2 == 0))
    return world


@pytest.fixture
def world(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "world"))


def report(world: Path, *words: str) -> int:
    fixed = ["--dataset_dir", f"{world}/data", "--out", f"{world}/report", "--workers", "1"]
    return guarded(command.main, [*fixed, *words])


def pair(world: Path, first: str = "half") -> list[str]:
    return ["--runs", f"{first}={world}/half", f"right={world}/right"]


def cells(html: str) -> list[list[str]]:
    """The text of all rows of all tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)] for row in rows]


def test_runs_beside_each_other(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(world, *pair(world), "--cases", "3") == 0
    html = (world / "report/report.html").read_text()
    found = {row[0]: row[1:] for row in cells(html)}
    assert found["right"][:3] == ["100.00"] * 3
    assert found["right"][4:7] == [str(COUNT // 2), "0", str(COUNT)]  # better on, worse on, scored
    both = float(found["half"][2])
    assert 50 <= both < 75
    assert float(found["right"][3]) == pytest.approx(100 - both, abs=0.011)
    for title in ("Best for all", "Worst for all", "Better by right than half"):
        assert html.count(f"<h3>{title}</h3>") == 1
    assert "Worse by right" not in html  # there is none
    assert html.count('class="case"') == 9
    assert html.count('class="exp"') == COUNT
    records = load_records("mevis", world / "data", "valid_u")
    better = html.split("Better by right than half</h3>")[1].split("<h3>")[0]
    assert {int(number) % 2 for number in re.findall(r'href="#e(\d+)"', better)} == {1}
    assert not re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,|#e\d|videos/)', html)
    assert "default-src 'none'; img-src data:" in html
    for record in records:
        assert (world / f"report/videos/{record.video}/{record.exp_id}.mp4").is_file()
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("|  | all | ")
    assert out[2].startswith(f"| half | {both:.1f} | ")
    assert out[-1] == f"report: {world}/report/report.html"


def test_means_by_type_claim_and_objects(world: Path) -> None:
    meta = json.loads((world / SPLIT / "meta_expressions.json").read_text())
    expected: dict[str, list[int]] = {}
    number = 0
    for video in meta["videos"].values():
        for entry in video["expressions"].values():
            names = {entry["type"], entry["predicate"], "one" if len(entry["anno_id"]) == 1 else "several"}
            if entry["type"] == "motion" and not entry["predicate"].startswith(("ends_", "nearest_end")):
                names.add("motion, several frames needed")
            for name in names:
                expected.setdefault(name, []).append(number)
            number += 1
    args = command.parser().parse_args(
        ["--dataset_dir", f"{world}/data", *pair(world), "--out", "o", "--workers", "1"]
    )
    material = command.material(args)
    half = [material.runs[0].scores[record.video, record.exp_id].both for record in material.records]
    groups = {name: keys for found in material.groups.values() for name, keys in found.items()}
    assert list(material.groups) == ["type", "claim", "objects meant"][: len(material.groups)]
    assert len(groups) >= 5
    for name, keys in groups.items():
        assert len(keys) == len(expected[name])
        mean = np.mean([half[number] for number in expected[name]])
        assert figures.mean_of(material.runs[0], keys) == pytest.approx(mean)
        assert figures.mean_of(material.runs[1], keys) == 1


def test_groups_of_sets_that_say_less() -> None:
    ids = [[], ["1"], ["1", "2"]]
    fields = [
        {"type_id": 0, "anno_id": ids[0]},
        {"type_id": 1, "anno_id": ids[1]},
        {"type_id": 2, "anno_id": ids[2]},
    ]
    entries = tuple(Entry(str(i), "x", entry, "") for i, entry in enumerate(fields))
    records = [Record("revos", "v", str(i), "x", ("0",), Path(), anno_ids=tuple(one)) for i, one in enumerate(ids)]
    assert group([Video("v", ("0",), entries, {}, "")], records) == {
        "type": {"other": [("v", "2")], "reason": [("v", "1")], "referring": [("v", "0")]},
        "objects meant": {"none": [("v", "0")], "one": [("v", "1")], "several": [("v", "2")]},
    }
    for silent in {}, {"type": 3, "type_id": [1]}:
        plain = tuple(Entry(str(i), "x", silent, "") for i in range(3))
        assert group([Video("v", ("0",), plain, {}, "")], records) == {}


def test_given_scores_are_taken_and_only_the_shown_expressions_are_drawn(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = command.parser().parse_args(["--dataset_dir", f"{world}/data", "--runs", "x", "--out", "o"])
    args.workers = 1
    for name in ("half", "right"):
        (world / f"{name}.json").write_text(json.dumps(command.evaluated(world / name, args)))
    drawn = []
    real = page.draw_expression

    def spy(record: Record, *rest: Any) -> Any:
        drawn.append((record.video, record.exp_id))
        return real(record, *rest)

    monkeypatch.setattr(page, "draw_expression", spy)
    monkeypatch.setattr(command, "evaluated", lambda *_: pytest.fail("scored again"))
    files = ["--eval_json", f"{world}/half.json", f"{world}/right.json"]
    assert report(world, *pair(world), *files, "--cases", "1", "--limit", "2") == 0
    html = (world / "report/report.html").read_text()
    assert len(drawn) == len(set(drawn)) == html.count('class="exp"') <= 2 + 3
    assert f"{len(drawn)} of {COUNT}: the first ones and the cases above" in html
    assert ["right", "100.00"] in [row[:2] for row in cells(html)]


def run_of(name: str, clips: list[list[float]]) -> Run:
    scores = {
        ("v", str(i)): Scores(0, 0, float(np.mean(c)), {f"{n}": value for n, value in enumerate(c)})
        for i, c in enumerate(clips)
    }
    return Run(name, Path(name), (0, 0, 0), {"J&F": 0.5}, scores)


def test_cases_and_their_frames() -> None:
    low, high = (
        run_of("low", [[0.5, 0.4], [0.9, 1.0], [0.1, 0.3]]),
        run_of("high", [[0.5, 0.9], [0.8, 0.9], [0.0, 0.3]]),
    )
    found = {cases.title: cases.frames for cases in figures.choose([low, high], 1)}
    assert found == {
        "Best for all": {("v", "1"): "1"},
        "Worst for all": {("v", "2"): "0"},
        "Better by high than low": {("v", "0"): "1"},
        "Worse by high than low": {("v", "1"): "0"},
    }
    empty = run_of("empty", [[1.0, 0.2]])  # a perfect 1 is mostly a frame without the object
    assert figures.choose([empty], 1)[0].frames == {("v", "0"): "1"}
    assert figures.compare(low, high) == (pytest.approx((0.25 - 0.1 - 0.05) / 3), 1, 2)


def test_time_stretches_clips_to_one_length() -> None:
    values = figures.over_time(
        run_of("r", [[0.0, 1.0], [0.0, 0.0, 1.0], [0.3]]), [("v", str(i)) for i in range(3)]
    )
    assert len(values) == figures.POINTS
    assert values[0] == pytest.approx(0.1)
    assert values[figures.POINTS // 2] == pytest.approx((0.5 + 0 + 0.3) / 3)
    assert values[-1] == pytest.approx((1 + 1 + 0.3) / 3)
    assert figures.over_time(Run("r", Path("r"), (0, 0, 0)), [("v", "0")]) is None


def test_what_files_and_arguments_say_is_escaped(world: Path) -> None:
    path = world / SPLIT / "meta_expressions.json"
    meta = json.loads(path.read_text())
    for entry in next(iter(meta["videos"].values()))["expressions"].values():
        entry.update(exp="<script>alert('exp')</script>", type="<i>kind", predicate='"><b>claim')
    path.write_text(json.dumps(meta))
    assert report(world, *pair(world, "<s>half"), "--title", "<u>title") == 0
    html = (world / "report/report.html").read_text()
    for tag in ("<script", "<i>", "<s>", "<u>"):
        assert tag not in html
    for text in ("&lt;script&gt;", "&lt;i&gt;kind", "&quot;&gt;&lt;b&gt;claim", "&lt;s&gt;half", "&lt;u&gt;title"):
        assert text in html


def test_refusals(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"video": "v", "exp_id": "0", "J": 1.0, "F": 1.0, "J&F": 1.0}
    record = load_records("mevis", world / "data", "valid_u")[0]
    known = {**good, "video": record.video, "exp_id": record.exp_id}

    def told(*words: str) -> str:
        assert report(world, *words) == 2
        assert not (world / "report").exists()
        return capsys.readouterr().err

    def told_of(*rows: dict[str, Any]) -> str:
        (world / "s.json").write_text(json.dumps({"J": 1, "F": 1, "J&F": 1, "expressions": rows}))
        return told("--runs", f"{world}/right", "--eval_json", f"{world}/s.json")

    assert "two runs are called 'right'" in told("--runs", f"{world}/right", f"right={world}/half")
    assert "no such folder; give FOLDER or NAME=FOLDER" in told("--runs", f"a={world}/nowhere")
    assert "at most 8 folders, found 9" in told("--runs", *(f"{i}={world}/right" for i in range(9)))
    assert "1 files for 2 runs" in told(*pair(world), "--eval_json", f"{world}/s.json")
    assert "--cases must be at least 1" in told(*pair(world), "--cases", "0")
    assert "v/0 is not an expression of the set" in told_of(good)
    for value in (float("nan"), 1.5, -0.1):
        assert "expressions[0].J must be between 0 and 1" in told_of({**known, "J": value})
    assert "other frames than the video's" in told_of({**known, "per_frame": {"J": [1.0]}})
    assert "other frames than the video's" in told_of({**known, "frames": ["x"], "per_frame": {"J": [1.0]}})
    (world / "half" / record.video / record.exp_id / f"{record.frames[1]}.png").unlink()
    error = told(*pair(world))
    assert f"{record.frames[1]}: missing" in error
    assert "give --eval_json" in error
