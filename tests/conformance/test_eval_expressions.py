"""The expression protocols, through their commands, against what the original scripts wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glus.evaluation.expression_commands import davis_main, mevis_main, reason_vos_main, revos_main

TOLERANCE = 1e-10


def near(value: Any) -> Any:
    return pytest.approx(value, rel=0, abs=TOLERANCE)


@pytest.fixture(scope="module")
def folder(golden: Callable[[str], Path]) -> Path:
    return golden("eval")


@pytest.fixture
def tree(eval_trees: Path) -> Path:
    return eval_trees


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def mevis_flags(folder: Path) -> list[str]:
    case = folder / "cases" / "mevis"
    return ["--mevis_exp_path", f"{case}/meta_expressions.json", "--mevis_mask_path", f"{case}/mask_dict.json"]


@pytest.mark.parametrize("form", ["folder", "json", "json_nested"])
def test_eval_mevis(folder: Path, tree: Path, tmp_path: Path, form: str) -> None:
    """From PNG folders and from both forms of one JSON of run-length codes."""
    expected = load(folder / "expected" / "eval_mevis.json")
    predictions = tree / "mevis_pred"
    if form != "folder":
        content = load(folder / "cases" / "mevis" / "pred_rle.json")
        if form == "json_nested":
            content = {v: {e: {"prediction_masks": m} for e, m in c.items()} for v, c in content.items()}
        predictions = tmp_path / "predictions.json"
        predictions.write_text(json.dumps(content))
    flags = [*mevis_flags(folder), "--mevis_pred_path", str(predictions), "--per_frame", "--workers", "1"]
    assert mevis_main([*flags, "--save_name", f"{tmp_path}/mevis.json", "--json", f"{tmp_path}/all.json"]) == 0
    assert load(tmp_path / "mevis.json") == {key: near(value) for key, value in expected["per_expression"].items()}
    found = load(tmp_path / "all.json")
    for key in ("J", "F", "J&F"):
        assert found[key] == near(expected[key])
    frames = load(folder / "expected" / "frame_metrics.json")
    assert len(found["expressions"]) == sum(len(expressions) for expressions in frames.values())
    for one in found["expressions"]:
        want = frames[one["video"]][one["exp_id"]]
        assert one["per_frame"] == {"J": near(want["J"]), "F": near(want["F"])}


def test_iou_path(folder: Path, tree: Path, tmp_path: Path) -> None:
    flags = [*mevis_flags(folder), "--mevis_pred_path", f"{tree}/mevis_pred", "--workers", "1"]
    assert mevis_main([*flags, "--save_name", f"{tmp_path}/m.json", "--iou_path", f"{tmp_path}/iou"]) == 0
    wanted = folder / "expected" / "iou_path"
    names = {p.relative_to(wanted) for p in wanted.rglob("*.json")}
    assert names
    assert {p.relative_to(tmp_path / "iou") for p in (tmp_path / "iou").rglob("*/*") if p.is_file()} == names
    for name in names:
        assert load(tmp_path / "iou" / name) == near(load(wanted / name)), name


def test_eval_davis(folder: Path, tree: Path, tmp_path: Path) -> None:
    expected = load(folder / "expected" / "eval_davis.json")
    case = folder / "cases" / "refdavis"
    flags = ["--mevis_exp_path", f"{case}/meta_expressions.json", "--mevis_mask_path", f"{case}/mask_dict.json"]
    flags += ["--mevis_pred_path", f"{tree}/refdavis_pred", "--save_name", f"{tmp_path}/file.json"]
    assert davis_main([*flags, "--json", f"{tmp_path}/all.json", "--workers", "1"]) == 0
    found = load(tmp_path / "all.json")
    for key in ("J", "F", "J&F"):
        assert found[key] == near(expected[key])
    values = {f"{one['video']}_{one['exp_id']}": [one["J"], one["F"]] for one in found["expressions"]}
    assert values == {key: near(value) for key, value in expected["per_expression"].items()}
    assert load(tmp_path / "file.json") == expected["file"]


# golden encoding -> (predictions, flags of each way to ask for that encoding)
REVOS = {
    "gray255": ("mevis_pred", [["--robustness", "as-read"], ["--robustness", "as-published"]]),
    "gray1": (
        "revos_pred_gray1",
        [["--robustness", "as-read"], ["--robustness", "as-published", "--pixel_value", "1"]],
    ),
    "palette": (
        "revos_pred_palette",
        [["--robustness", "as-read"], ["--robustness", "as-published", "--pixel_value", "38"]],
    ),
}


def test_eval_revos(folder: Path, tree: Path, tmp_path: Path) -> None:
    expected = load(folder / "expected" / "eval_revos.json")
    assert expected.keys() <= REVOS.keys()
    exp, masks = folder / "cases" / "mevis", folder / "cases" / "revos"
    flags = ["--visa_exp_path", f"{exp}/meta_expressions.json", "--visa_mask_path", f"{exp}/mask_dict.json"]
    flags += ["--visa_foreground_mask_path", f"{masks}/mask_dict_foreground.json", "--workers", "1"]
    flags += ["--save_json_name", f"{tmp_path}/r.json", "--save_csv_name", f"{tmp_path}/r.csv"]
    flags += ["--json", f"{tmp_path}/all.json"]
    for encoding, want in expected.items():
        predictions, variants = REVOS[encoding]
        for variant in variants:
            assert revos_main([*flags, "--visa_pred_path", f"{tree}/{predictions}", *variant]) == 0
            results = load(tmp_path / "r.json")
            assert results == {group: near(values) for group, values in want["results"].items()}
            found = {
                f"{e['video']}_{e['exp_id']}": [e[m] for m in "JFAR"]
                for e in load(tmp_path / "all.json")["expressions"]
            }
            assert found == {key: near(values) for key, values in want["per_expression"].items()}
            with open(tmp_path / "r.csv", newline="") as handle:
                rows = {row["videxp"]: row for row in csv.DictReader(handle)}
            assert rows.keys() == {row["videxp"] for row in want["csv_rows"]}
            for row in want["csv_rows"]:
                assert rows[row["videxp"]] == {key: str(value) for key, value in row.items()}


def test_eval_revos_unrounded(folder: Path, tree: Path, tmp_path: Path) -> None:
    """--json carries the totals of the unrounded per-expression values."""
    want = load(folder / "expected" / "eval_revos.json")["gray255"]
    exp, masks = folder / "cases" / "mevis", folder / "cases" / "revos"
    flags = ["--visa_exp_path", f"{exp}/meta_expressions.json", "--visa_mask_path", f"{exp}/mask_dict.json"]
    flags += ["--visa_foreground_mask_path", f"{masks}/mask_dict_foreground.json", "--workers", "1"]
    flags += ["--save_json_name", f"{tmp_path}/r.json", "--save_csv_name", f"{tmp_path}/r.csv"]
    flags += ["--json", f"{tmp_path}/all.json", "--visa_pred_path", f"{tree}/mevis_pred"]
    assert revos_main([*flags, "--robustness", "as-published", "--rounding", "none"]) == 0
    types = {row["videxp"]: row["type_id"] for row in want["csv_rows"]}
    groups = []
    for type_id in (0, 1):
        values = [v for key, v in want["per_expression"].items() if types[key] == type_id]
        groups.append([sum(column) / len(values) for column in zip(*values, strict=True)])
    overall = [(a + b) / 2 for a, b in zip(*groups, strict=True)]
    found = load(tmp_path / "all.json")
    assert [found[m] for m in "JFAR"] == near(overall)
    assert [load(tmp_path / "r.json")["overall"][m] for m in "JFAR"] == pytest.approx([100 * v for v in overall])


def test_eval_reason_vos(folder: Path, tree: Path, tmp_path: Path) -> None:
    expected = load(folder / "expected" / "eval_reason_vos.json")
    flags = ["--meta_exp_path", f"{folder}/cases/reasonvos/meta_expressions.json"]
    flags += ["--mask_path", f"{tree}/reasonvos_annotations", "--pred_path", f"{tree}/mevis_pred"]
    flags += ["--save_name", f"{tmp_path}/reasonvos", "--json", f"{tmp_path}/all.json", "--workers", "1"]
    assert reason_vos_main(flags) == 0
    assert load(tmp_path / "reasonvos") == {key: near(v) for key, v in expected["per_expression"].items()}
    found = load(tmp_path / "all.json")
    for key in ("J", "F", "J&F"):
        assert found[key] == near(expected[key])
