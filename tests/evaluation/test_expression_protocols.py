"""The expression evaluators on made-up data: scores by definition, faults, policies, outputs, processes."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from expression_data import FRAMES, SHAPE, Data

from glus.errors import OutputError
from glus.evaluation import command
from glus.evaluation.expression_commands import mevis_main
from glus.masks import encode_rle, write_mask_png

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


def test_scores_by_definition(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    result = data.mevis("--per_frame", "--csv", f"{data.root}/all.csv")
    means = []
    assert [(e["video"], e["exp_id"]) for e in result["expressions"]] == list(data.pred)
    for one in result["expressions"]:
        want = data.scores(one["video"], one["exp_id"])
        assert one["per_frame"] == want
        assert one["frames"] == FRAMES
        means.append([np.mean(want["J"]), np.mean(want["F"])])
        assert [one["J"], one["F"]] == means[-1]
    total = np.mean(means, axis=0)
    assert [result["J"], result["F"], result["J&F"]] == pytest.approx([*total, total.mean()])
    assert json.loads((data.root / "out.json").read_text())["v_x y"] == pytest.approx(means[-1])
    assert len((data.root / "all.csv").read_text().splitlines()) == 1 + len(means)
    assert f"{100 * total.mean():.2f}" in capsys.readouterr().out


def test_results_do_not_depend_on_processes(data: Data) -> None:
    one = data.mevis("--per_frame")
    assert data.mevis("--per_frame", "--workers", "2") == one


def test_iou_files_are_in_sorted_frame_order(data: Data) -> None:
    data.mevis("--iou_path", f"{data.root}/iou")
    order = [FRAMES.index(name) for name in sorted(FRAMES)]
    for video, exp_id in data.pred:
        found = json.loads((data.root / "iou" / video / f"{exp_id}.json").read_text())
        assert found == [data.scores(video, exp_id)["J"][t] for t in order]


def test_missing_masks_stop_or_are_empty(data: Data) -> None:
    data.file("v_1", "0", 1).unlink()
    data.file("v_1", "1", 0).rename(data.file("v_1", "1", 0).with_suffix(".jpg"))
    for t in range(len(FRAMES)):
        data.file("v", "2", t).unlink()
    (data.root / "pred" / "v" / "2").rmdir()
    message = data.faults()
    assert "3 of 5 expressions" in message
    for part in (
        "v_1/0/00002: missing",
        "v_1/1/00010: missing (there is 00010.jpg",
        "v/2: no such folder (3 frames)",
    ):
        assert part in message
    empty = np.zeros(SHAPE, np.bool_)
    data.pred["v_1", "0"][1] = data.pred["v_1", "1"][0] = empty
    data.pred["v", "2"] = [empty] * 3
    result = data.mevis("--allow_missing")
    assert (result["missing_frames"], result["missing_expressions"]) == (5, 3)
    for one in result["expressions"]:
        want = data.scores(one["video"], one["exp_id"])
        assert (one["J"], one["F"]) == (np.mean(want["J"]), np.mean(want["F"]))


def damage(data: Data, what: str) -> str:
    """Do one thing wrong; returns what the message has to say."""
    entry = data.meta["videos"]["v_1"]
    file = data.file("v_1", "0", 1)
    if what == "other size":
        write_mask_png(file, np.zeros((20, 70)))
        return "v_1/0/00002: mask of 20x70, expected 21x70"
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:-20])
        return f"{file}: truncated"
    if what == "not a png":
        file.write_bytes(b"hello")
        return f"{file}: not a PNG"
    if what == "extra frame":
        write_mask_png(file.with_name("00003.png"), np.zeros(SHAPE))
        return "v_1/0/00003: no frame of that name"
    if what == "annotation too short":
        data.masks["0"].pop()
        return "annotation 0: 2 masks for 3 frames"
    if what == "annotation too long":
        data.masks["0"].append(None)
        return "annotation 0: 4 masks for 3 frames"
    if what == "unknown annotation":
        del data.masks["0"]
        return "no annotation 0"
    if what == "annotation of other size":
        data.masks["0"][1] = encode_rle(np.ones((5, 5)))
        return "frame 00002: mask of 5x5"
    if what == "corrupt annotation":
        data.masks["0"][1] = {"size": list(SHAPE), "counts": "5555"}
        return "annotation 0, frame 00002: corrupt RLE"
    if what == "annotation is no mask":
        data.masks["0"][1] = {"counts": "5555"}
        return "annotation 0, frame 00002: a mask must be a COCO RLE"
    if what == "annotation is no list":
        data.masks["0"] = "P5"
        return "field 0 must be list"
    if what == "no frames":
        entry["frames"] = []
        return "videos.v_1.frames is empty"
    if what == "frame twice":
        entry["frames"] = ["1", "2", "1"]
        return "lists a frame twice"
    if what == "frames missing":
        del entry["frames"]
        return "videos.v_1 has no field 'frames'"
    if what == "expressions missing":
        del entry["expressions"]
        return "videos.v_1 has no field 'expressions'"
    if what == "text missing":
        del entry["expressions"]["0"]["exp"]
        return "expressions.0 has no field 'exp'"
    if what == "anno_id missing":
        del entry["expressions"]["0"]["anno_id"]
        return "expressions.0 has no field 'anno_id'"
    if what == "anno_id wrong":
        entry["expressions"]["0"]["anno_id"] = [1.5]
        return "anno_id must be"
    if what == "video leaves the folder":
        data.meta["videos"]["../secret"] = entry
        return "'../secret' is not a plain file name"
    if what == "frame leaves the folder":
        entry["frames"][0] = "../x"
        return "'../x' is not a plain file name"
    if what == "expression leaves the folder":
        entry["expressions"]["../x"] = entry["expressions"]["0"]
        return "'../x' is not a plain file name"
    if what == "no videos":
        del data.meta["videos"]
        return "has no field 'videos'"
    if what == "nothing to score":
        data.meta["videos"] = {}
        return "no expressions to score"
    raise AssertionError(what)


FAULTS = [
    *("other size", "truncated", "not a png", "extra frame", "annotation too short", "annotation too long"),
    *("unknown annotation", "annotation of other size", "corrupt annotation", "annotation is no mask"),
    *("annotation is no list", "no frames", "frame twice", "frames missing", "expressions missing"),
    *("text missing", "anno_id missing", "anno_id wrong", "video leaves the folder", "frame leaves the folder"),
    *("expression leaves the folder", "no videos", "nothing to score"),
]


@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("missing", [[], ["--allow_missing"]])
def test_faults_are_named_and_nothing_is_written(data: Data, what: str, missing: list[str]) -> None:
    """--allow_missing forgives masks that are not there, and nothing else."""
    part = damage(data, what)
    (data.root / "meta.json").write_text(json.dumps(data.meta))
    (data.root / "masks.json").write_text(json.dumps(data.masks))
    assert part in data.faults(*missing)


@pytest.mark.parametrize("name", ["meta.json", "masks.json"])
@pytest.mark.parametrize("text", ["", '{"videos": ', "[1]", None])
def test_broken_json(data: Data, name: str, text: str | None) -> None:
    if text is None:
        (data.root / name).unlink()
    else:
        (data.root / name).write_text(text)
    assert name in data.faults()


def test_policies_for_failed_expressions(data: Data) -> None:
    damage(data, "truncated")
    for name in FRAMES:
        (data.root / "pred" / "v" / "2" / f"{name}.png").unlink()
        (data.root / "pred" / "v" / "x y" / f"{name}.png").unlink()
    for exp_id in ("2", "x y"):
        (data.root / "pred" / "v" / exp_id).rmdir()
    (data.root / "pred" / "v").rmdir()
    alive = {("v_1", "1"), ("v_1", "10")}
    for policy, zeros in {
        "drop": set(),
        "zero": data.pred.keys() - alive,
        "original": {("v", "2"), ("v", "x y")},  # eval_mevis: nothing for the video is 0, other failures are lost
    }.items():
        result = data.mevis("--on_failure", policy)
        values = {(e["video"], e["exp_id"]): (e["J"], e["F"]) for e in result["expressions"]}
        assert values.keys() == alive | zeros
        assert all(values[key] == (0, 0) for key in zeros)
        assert all(values[key][0] == np.mean(data.scores(*key)["J"]) for key in alive)
        assert set(result["failed"]) == {"v_1/0", "v/2", "v/x y"}
        assert result["J"] == pytest.approx(np.mean([j for j, _ in values.values()]))


def test_original_reading_of_png(data: Data) -> None:
    """A 16-bit mask of value 255 counts here; --read_png opencv shows what the original made of it."""
    for t, mask in enumerate(data.pred["v", "2"]):
        cv2.imwrite(str(data.file("v", "2", t)), mask.astype(np.uint16) * np.uint16(255))
    by_value = {e["exp_id"]: e for e in data.mevis()["expressions"]}
    assert by_value["2"]["J"] == np.mean(data.scores("v", "2")["J"])
    data.pred["v", "2"] = [np.zeros(SHAPE, np.bool_)] * 3
    original = {e["exp_id"]: e for e in data.mevis("--read_png", "opencv")["expressions"]}
    assert original["2"]["J"] == np.mean(data.scores("v", "2")["J"])


def test_json_predictions(data: Data) -> None:
    want = data.mevis()["expressions"]
    content: dict[str, Any] = {}
    for (video, exp_id), masks in data.pred.items():
        content.setdefault(video, {})[exp_id] = {"prediction_masks": [encode_rle(m) for m in masks]}
    path = data.root / "pred.json"
    path.write_text(json.dumps(content))
    assert data.mevis("--mevis_pred_path", str(path))["expressions"] == want
    (data.root / "all.json").unlink()
    (data.root / "out.json").unlink()
    content["v"]["2"]["prediction_masks"][1] = None
    content["v"]["x y"]["prediction_masks"].pop()
    content["v_1"]["0"]["prediction_masks"][2]["counts"] = "5"
    del content["v_1"]["1"]
    path.write_text(json.dumps(content))
    message = data.faults("--mevis_pred_path", str(path))
    for part in (
        "v/2/00002: missing",
        "v/x y: 2 masks for 3 frames",
        "frame 00007: corrupt RLE",
        "v_1/1: no prediction",
    ):
        assert part in message
    path.write_text("[]")
    assert "must be dict" in data.faults("--mevis_pred_path", str(path))
    assert "no such folder" in data.faults("--mevis_pred_path", str(data.root / "nowhere"))


def test_video_without_any_ground_truth(data: Data) -> None:
    """Nothing tells the size but the predictions; empty against empty is 1."""
    entry = {"exp": "nothing", "obj_id": [], "anno_id": []}
    data.meta["videos"] = {"none": {"frames": FRAMES, "expressions": {"0": entry, "1": entry}}}
    data.truth, data.masks = {}, {}
    data.pred = {("none", "0"): [np.zeros(SHAPE, np.bool_)] * 3, ("none", "1"): [np.eye(*SHAPE) > 0] * 3}
    data.write()
    result = data.mevis()
    assert [(e["J"], e["F"]) for e in result["expressions"]] == [(1, 1), (0, 0)]
    write_mask_png(data.file("none", "1", 2), np.zeros((3, 3)))
    (data.root / "all.json").unlink()
    (data.root / "out.json").unlink()
    assert "mask of 3x3, expected 21x70" in data.faults()
    for t in range(3):
        data.file("none", "1", t).unlink()
        data.file("none", "0", t).unlink()
    assert data.mevis("--allow_missing")["J&F"] == 1


@pytest.mark.parametrize("name", [name for name in command.COMMANDS.entries if name != "--all"])
def test_every_evaluator_is_a_script_and_a_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "utils" / f"eval_{name.replace('-', '_')}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(script), run_name="__main__")
    of_script = capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        command.main([name, "--help"])
    of_command = capsys.readouterr().out
    assert of_script.startswith(f"usage: {script.name} ")
    assert of_command.startswith(f"usage: python -m glus eval {name} ")
    options = "\noptions:"
    assert of_script.split(options)[1] == of_command.split(options)[1]


def test_table_of_commands(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["mevis", *data.flags()]) == 0
    assert (data.root / "all.json").exists()
    capsys.readouterr()
    assert command.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")] == list(
        command.COMMANDS.entries
    )
    assert command.main([]) == 2
    assert command.main(["davis17"]) == 2
    assert "unknown data set 'davis17'" in capsys.readouterr().err


def test_predictions_that_nobody_asks_for(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    """They cost nothing, but may be a sign of the wrong set."""
    want = data.mevis()
    assert "not scored" not in caplog.text
    (data.root / "pred" / "v" / "3").mkdir()
    (data.root / "pred" / "w" / "0").mkdir(parents=True)
    assert data.mevis() == want
    assert "2 predicted videos or expressions are not scored; the first: " in caplog.text
    assert "pred: w is not a video" in caplog.text
    caplog.clear()
    assert data.mevis("--allow_extra") == want
    assert "not scored" not in caplog.text


@pytest.mark.parametrize("option", ["--json", "--csv", "--save_name"])
def test_output_folders_are_looked_at_before_scoring(
    data: Data, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glus.evaluation.expression_run.map_items", lambda *_: pytest.fail("has scored"))
    with pytest.raises(OutputError, match=r"cannot write .*no/x\.json: no folder"):
        mevis_main(data.flags(option, f"{data.root}/no/x.json"))


def test_exit_status(data: Data) -> None:
    """0 done, 2 bad input (one message, no traceback) or bad flags."""
    run: Callable[[list[str]], Any] = lambda flags: subprocess.run(  # noqa: E731
        [sys.executable, ROOT / "utils" / "eval_mevis.py", *flags], capture_output=True, text=True, check=False
    )
    assert run(data.flags("--workers", "2")).returncode == 0
    data.file("v", "2", 0).unlink()
    failed = run(data.flags("--workers", "2"))
    assert failed.returncode == 2
    assert "v/2/00010: missing" in failed.stderr
    assert "Traceback" not in failed.stderr
    for flags in (["--mevis_exp_path", "x"], data.flags("--workers", "0")):
        assert run(flags).returncode == 2
    unwritable = run(data.flags("--allow_missing", "--save_name", f"{data.root}/no/such/folder/x.json"))
    assert unwritable.returncode == 2
    assert "no/such/folder" in unwritable.stderr
