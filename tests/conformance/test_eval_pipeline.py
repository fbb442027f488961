"""The data set in which each video has one defect: what the originals scored we score, what broke them we name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from glus.errors import InputError
from glus.evaluation.expression_commands import mevis_main, reason_vos_main, revos_main

TOLERANCE = 1e-10
Main = Callable[[Sequence[str]], int]


def tools(folder: Path, out: Path) -> dict[str, tuple[Main, list[str]]]:
    """Golden name of a tool -> (our command, its flags)."""
    pred, meta = f"{folder}/pred", f"{folder}/meta_expressions.json"
    mevis = ["--mevis_exp_path", meta, "--mevis_mask_path", f"{folder}/mask_dict.json", "--mevis_pred_path", pred]
    revos = ["--visa_exp_path", meta, "--visa_mask_path", f"{folder}/mask_dict.json", "--visa_pred_path", pred]
    revos += ["--visa_foreground_mask_path", f"{folder}/mask_dict_foreground.json", "--robustness", "as-read"]
    revos += ["--save_json_name", f"{out}/revos.json", "--save_csv_name", f"{out}/revos.csv"]
    reason = ["--meta_exp_path", f"{folder}/reasonvos_meta_expressions.json", "--pred_path", pred]
    reason += ["--mask_path", f"{folder}/reasonvos_annotations", "--save_name", f"{out}/reason"]
    mevis += ["--save_name", f"{out}/mevis.json"]
    # The golden of eval_davis takes the annotation ids as they stand, which is what eval_mevis does.
    return {
        "eval_mevis": (mevis_main, mevis),
        "eval_davis": (mevis_main, mevis),
        "eval_revos": (revos_main, revos),
        "eval_reason_vos": (reason_vos_main, reason),
    }


def scored(main: Main, flags: list[str], out: Path) -> tuple[dict[str, list[float]], set[str]]:
    """Per "video/exp_id" the values, and the names of the failed ones."""
    assert main([*flags, "--json", f"{out}/all.json", "--workers", "1"]) == 0
    result = json.loads((out / "all.json").read_text())
    metrics = [m for m in "JFAR" if m in result["expressions"][0]]
    values = {f"{e['video']}/{e['exp_id']}": [e[m] for m in metrics] for e in result["expressions"]}
    return values, set(result["failed"])


def expected_items(folder: Path) -> list[tuple[str, str, Any]]:
    """(tool, "video/exp_id", golden result)"""
    expected = json.loads((folder / "expected.json").read_text())
    items = [
        (tool, f"{case}/{exp_id}", want)
        for case, by_tool in expected.items()
        for tool, by_exp in by_tool.items()
        for exp_id, want in by_exp.items()
    ]
    assert items
    return items


def test_the_originals_numbers(golden: Callable[[str], Path], tmp_path: Path) -> None:
    """With the original policies every number is reproduced; what the originals dropped is dropped and named,
    or (frames that do not start at 00000) scored as the tool without that defect scores it."""
    folder = golden("eval") / "pipeline"
    items = expected_items(folder)
    by_key = {(tool, name): want for tool, name, want in items}
    compat = ["--on_failure", "original", "--read_png", "opencv", "--allow_extra"]
    runs = {tool: scored(main, [*f, *compat], tmp_path) for tool, (main, f) in tools(folder, tmp_path).items()}
    for tool, name, want in items:
        values, failed = runs[tool]
        if isinstance(want, list):
            assert values[name] == pytest.approx(want, rel=0, abs=TOLERANCE), (tool, name)
            if name in failed:
                assert not any(want), (tool, name)
        elif name in failed:
            assert name not in values, (tool, name)
        else:
            sound = by_key["eval_revos", name]
            assert any(sound), (tool, name)
            assert values[name] == pytest.approx(sound[: len(values[name])], rel=0, abs=TOLERANCE), (tool, name)


def test_every_defect_is_named(golden: Callable[[str], Path], tmp_path: Path) -> None:
    """By default faults stop the run, and the message names every video that the originals lost."""
    folder = golden("eval") / "pipeline"
    items = expected_items(folder)
    for tool, (main, flags) in tools(folder, tmp_path).items():
        _, failed = scored(main, [*flags, "--on_failure", "drop"], tmp_path)
        with pytest.raises(InputError) as error:
            main(
                [
                    *flags,
                    "--workers",
                    "1",
                    "--save_name" if "revos" not in tool else "--save_json_name",
                    "/nowhere",
                ]
            )
        message = str(error.value)
        assert failed
        for name in failed:
            assert name.split("/")[0] in message, (tool, name)
        for of_tool, name, want in items:
            lost = want == "not scored" if isinstance(want, str) else not any(want) and want != [0.0, 0.0]
            if of_tool == tool and lost:
                assert name in failed, (tool, name)
