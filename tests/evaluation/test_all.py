"""`eval --all`: every data set's results below a folder, each scored as by its own command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from definition import random_mask

from glus.__main__ import main
from glus.evaluation import expression_commands as single
from glus.masks import encode_rle, write_mask_png

FRAMES = ["00000", "00001", "00002"]
SHAPE = (20, 30)
VIDEO = "cat"


class Tree:
    """Data sets below `data` and results below `out`: one video, two objects, random masks."""

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.out = root, root / "data", root / "out"
        self.rng = np.random.default_rng(0)
        self.labels = [self.rng.integers(0, 3, SHAPE).astype(np.uint8) for _ in FRAMES]
        self.codes = {str(a): [encode_rle(m == a + 1) for m in self.labels] for a in range(8)}

    def expressions(self, path: str, count: int = 2, listed: bool = False) -> None:
        entries = [
            {
                "exp": "a",
                "exp_text": "a",
                "exp_id": i,
                "obj_id": 2 * i // count + 1,
                "anno_id": [2 * i // count],
                "type_id": i % 2,
            }
            for i in range(count)
        ]
        said = entries if listed else {str(i): {**e, "obj_id": str(e["obj_id"])} for i, e in enumerate(entries)}
        video = {"source": "MOSE", "frames": FRAMES, "expressions": said}
        self.json(path, {"videos": {VIDEO: video}})

    def json(self, path: str, content: Any) -> None:
        (self.data / path).parent.mkdir(parents=True, exist_ok=True)
        (self.data / path).write_text(json.dumps(content))

    def maps(self, folder: str) -> None:
        (self.data / folder).mkdir(parents=True)
        for name, labels in zip(FRAMES, self.labels, strict=True):
            cv2.imwrite(str(self.data / folder / f"{name}.png"), labels)

    def results(self, folder: str, count: int = 2, record: tuple[str, str] | None = None) -> None:
        for i in range(count):
            place = self.out / folder / VIDEO / str(i)
            place.mkdir(parents=True)
            for name in FRAMES:
                write_mask_png(place / f"{name}.png", random_mask(self.rng, *SHAPE))
        if record:
            (self.out / folder / ".glus").mkdir()
            content = {"format": 1, "data": {"val_set": record[0], "set_name": record[1], "items_sha256": ""}}
            (self.out / folder / ".glus" / "run.json").write_text(json.dumps(content))

    def score(self, *more: object) -> tuple[int, list[dict[str, Any]]]:
        (self.root / "all.json").unlink(missing_ok=True)
        flags = ["--data_dir", self.data, "--workers", "1", "--json", self.root / "all.json", *more]
        status = main(["eval", "--all", *map(str, [self.out, *flags])])
        path = self.root / "all.json"
        return status, json.loads(path.read_text())["results"] if path.exists() else []


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Every data set, one of them twice."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tree = Tree(tmp_path)
    tree.expressions("mevis/valid_u/meta_expressions.json")
    tree.json("mevis/valid_u/mask_dict.json", tree.codes)
    tree.expressions("mevis/valid/meta_expressions.json")
    tree.expressions("ReVOS/meta_expressions_valid_.json")
    tree.json("ReVOS/mask_dict.json", tree.codes)
    every = [encode_rle(m > 0) for m in tree.labels]
    tree.json("ReVOS/mask_dict_foreground.json", {VIDEO: {"masks_rle": every}})
    tree.expressions("ReasonVOS/meta_expressions.json", listed=True)
    for i in range(2):
        folder = tree.data / "ReasonVOS" / "Annotations" / f"MOSE_{VIDEO}_{i + 1}"
        folder.mkdir(parents=True)
        for name, labels in zip(FRAMES, tree.labels, strict=True):
            write_mask_png(folder / f"{name}.png", labels == i + 1)
    tree.expressions("Refer-YouTube-VOS/meta_expressions/mine/meta_expressions.json")
    tree.maps(f"Refer-YouTube-VOS/mine/Annotations/{VIDEO}")
    tree.expressions("DAVIS17/meta_expressions/valid/meta_expressions.json", 8)
    tree.maps(f"DAVIS17/valid/Annotations/{VIDEO}")
    tree.maps(f"../davis/Annotations_unsupervised/480p/{VIDEO}")
    tree.json("../davis/ImageSets/2017/val.txt", 0)
    (tmp_path / "davis/ImageSets/2017/val.txt").write_text(f"{VIDEO}\n")
    tree.results("a/first", record=("mevis", "valid_u"))
    tree.results("mevis_valid_u")
    tree.results("mevis_valid")
    tree.results("revos_valid")
    tree.results("b/c/reason", record=("reasonvos", "valid"))
    tree.results("refyoutube_vos_mine")
    tree.results("davis17_valid", 8)
    (tree.out / "mevis_notes").mkdir()  # no masks
    return tree


def alone(command: Any, tree: Tree, *flags: object) -> dict[str, Any]:
    path = tree.root / "alone.json"
    assert command([*map(str, flags), "--workers", "1", "--json", str(path)]) == 0
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def test_every_set_is_scored_as_by_its_own_command(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = tree.score("--davis_path", tree.root / "davis")
    shown = capsys.readouterr().out
    assert [row["error"] for row in rows if "error" in row] == []
    assert status == 0
    data, out = tree.data, tree.out
    mevis = ("--mevis_exp_path", data / "mevis/valid_u/meta_expressions.json")
    mevis += ("--mevis_mask_path", data / "mevis/valid_u/mask_dict.json", "--save_name", tree.root / "x")
    youtube = ("--meta_exp_path", data / "Refer-YouTube-VOS/meta_expressions/mine/meta_expressions.json")
    davis = data / "DAVIS17/meta_expressions/valid/meta_expressions.json"
    reason = ("--meta_exp_path", data / "ReasonVOS/meta_expressions.json", "--save_name", tree.root / "x")
    revos = ("--visa_exp_path", data / "ReVOS/meta_expressions_valid_.json")
    revos += ("--visa_mask_path", data / "ReVOS/mask_dict.json", "--save_json_name", tree.root / "x")
    revos += ("--visa_foreground_mask_path", data / "ReVOS/mask_dict_foreground.json")
    four = ("--protocol", "four-annotators", "--davis_path", tree.root / "davis", "--mevis_exp_path", davis)
    wanted: dict[str, Sequence[Any]] = {
        "a/first (mevis valid_u)": (single.mevis_main, *mevis, "--mevis_pred_path", out / "a/first"),
        "b/c/reason (reasonvos valid)": (
            *(single.reason_vos_main, *reason, "--pred_path", out / "b/c/reason"),
            *("--mask_path", data / "ReasonVOS/Annotations"),
        ),
        "davis17_valid (davis17 valid, expressions)": (
            *(single.refytvos_main, "--meta_exp_path", davis, "--pred_path", out / "davis17_valid"),
            *("--mask_path", data / "DAVIS17/valid/Annotations"),
        ),
        "davis17_valid (davis17 valid, four annotators)": (
            *(single.davis_main, *four, "--mevis_pred_path", out / "davis17_valid"),
        ),
        "mevis_valid (mevis valid)": (),
        "mevis_valid_u (mevis valid_u)": (single.mevis_main, *mevis, "--mevis_pred_path", out / "mevis_valid_u"),
        "refyoutube_vos_mine (refyoutube_vos mine)": (
            *(single.refytvos_main, *youtube, "--pred_path", out / "refyoutube_vos_mine"),
            *("--mask_path", data / "Refer-YouTube-VOS/mine/Annotations"),
        ),
        "revos_valid (revos valid)": (
            *(single.revos_main, *revos, "--save_csv_name", tree.root / "y"),
            *("--visa_pred_path", out / "revos_valid"),
        ),
    }
    assert [row["name"] for row in rows] == list(wanted)
    for row in rows:
        call = wanted[row["name"]]
        if not call:
            assert "not public" in row["note"]
            assert f"{row['name']}: its masks are not public" in shown
            continue
        result = alone(call[0], tree, *call[1:])
        assert row["details"] == result
        assert 0 < row["J&F"] == result["J&F"] < 1
        line = next(line for line in shown.splitlines() if line.startswith(row["name"]))
        assert f"{100 * row['J&F']:.2f}" in line
    assert {"A", "R"} <= rows[-1].keys()
    assert not list(Path.cwd().iterdir())  # none of the files that the single commands write besides


def test_a_table_of_run_length_codes_for_davis(tree: Tree) -> None:
    codes = {str(i): [encode_rle(m == i // 4 + 1) for m in tree.labels] for i in range(8)}
    tree.json("DAVIS17/valid/mask_dict.json", codes)
    for folder in ("a", "b", "mevis_valid", "mevis_valid_u", "revos_valid", "refyoutube_vos_mine"):
        shutil.rmtree(tree.out / folder)
    _, before = tree.score()
    shutil.rmtree(tree.data / "DAVIS17" / "valid" / "Annotations")
    status, rows = tree.score()
    assert (status, len(rows)) == (0, 1)
    assert rows[0]["details"]["protocol"] == "davis"
    assert rows[0]["J&F"] == before[0]["J&F"]
    (tree.data / "DAVIS17/valid/mask_dict.json").unlink()
    status, rows = tree.score()
    assert status == 2
    assert "--davis_path" in rows[0]["error"]


def test_one_set_at_fault_does_not_keep_the_others(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    (tree.out / "a/first" / VIDEO / "0" / "00001.png").unlink()
    shutil.rmtree(tree.data / "ReasonVOS" / "Annotations")
    tree.results("mevis_other")
    status, rows = tree.score()
    told = capsys.readouterr()
    assert status == 2
    wrong = {row["name"]: row["error"] for row in rows if "error" in row}
    assert wrong.keys() == {"a/first (mevis valid_u)", "b/c/reason (reasonvos valid)", "mevis_other (mevis other)"}
    assert "1 of 2 expressions" in wrong["a/first (mevis valid_u)"]
    assert "Annotations, are not there" in wrong["b/c/reason (reasonvos valid)"]
    assert "splits there: valid, valid_u" in wrong["mevis_other (mevis other)"]
    assert all(f"error: {name}: {message}" in told.err for name, message in wrong.items())
    assert sum("J&F" in row for row in rows) == 4
    status, rows = tree.score("--allow_missing")
    assert rows[0]["missing"] == 1
    assert "a/first (mevis valid_u): 1 missing masks are scored as empty" in capsys.readouterr().out
    status, rows = tree.score("--on_failure", "drop")
    assert rows[0]["details"]["expressions_scored"] == 1


def test_the_folder_itself_may_be_results(tree: Tree) -> None:
    tree.out = tree.out / "mevis_valid_u"
    status, rows = tree.score()
    assert status == 0
    assert [row["name"] for row in rows] == ["mevis_valid_u (mevis valid_u)"]


def test_nothing_to_score(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.out = tree.out / "mevis_notes"
    assert tree.score()[0] == 2
    assert "no results in it" in capsys.readouterr().err
    tree.out = tree.out / "none"
    assert tree.score()[0] == 2
    assert "no such folder" in capsys.readouterr().err
