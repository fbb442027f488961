"""The expression evaluators on made-up data: scores by definition, faults, policies, outputs, processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from definition import boundary, random_mask, region

from glus.errors import InputError
from glus.evaluation.expression_commands import (
    davis_main,
    mevis_main,
    reason_vos_main,
    refytvos_main,
    revos_main,
)
from glus.masks import encode_rle, write_mask_png

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (21, 70)
FRAMES = ["00010", "00002", "00007"]  # not sorted, and not from 00000


class Data:
    """A MeViS-like data set with predictions, and its scores by definition."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(0)
        self.root = root
        self.truth: dict[str, list[Any]] = {str(a): [random_mask(rng, *SHAPE) for _ in FRAMES] for a in range(5)}
        self.pred: dict[tuple[str, str], list[Any]] = {}
        annotations = {"v_1": {"0": [0], "1": [0, 1], "10": []}, "v": {"2": [2], "x y": [3, 4, 2]}}
        self.meta: dict[str, Any] = {"videos": {}}
        for video, expressions in annotations.items():
            entries = {}
            for number, (exp_id, ids) in enumerate(expressions.items()):
                entries[exp_id] = {"exp": f"say, {exp_id}", "obj_id": ids, "anno_id": ids, "type_id": number % 3}
                self.pred[video, exp_id] = [random_mask(rng, *SHAPE) for _ in FRAMES]
            self.meta["videos"][video] = {"frames": list(FRAMES), "expressions": entries}
        self.masks: dict[str, Any] = {
            key: [encode_rle(m) if m.any() else None for m in masks] for key, masks in self.truth.items()
        }
        self.write()

    def write(self) -> None:
        (self.root / "meta.json").write_text(json.dumps(self.meta))
        (self.root / "masks.json").write_text(json.dumps(self.masks))
        for (video, exp_id), masks in self.pred.items():
            folder = self.root / "pred" / video / exp_id
            folder.mkdir(parents=True, exist_ok=True)
            for name, mask in zip(FRAMES, masks, strict=True):
                write_mask_png(folder / f"{name}.png", mask)

    def union(self, video: str, exp_id: str, t: int) -> Any:
        total = np.zeros(SHAPE, np.bool_)
        for anno in self.meta["videos"][video]["expressions"][exp_id]["anno_id"]:
            total |= self.truth[str(anno)][t]
        return total

    def scores(self, video: str, exp_id: str) -> dict[str, list[float]]:
        pairs = [(self.union(video, exp_id, t), p) for t, p in enumerate(self.pred[video, exp_id])]
        return {"J": [region(g, p) for g, p in pairs], "F": [boundary(g, p) for g, p in pairs]}

    def flags(self, *more: str) -> list[str]:
        flags = ["--mevis_exp_path", f"{self.root}/meta.json", "--mevis_mask_path", f"{self.root}/masks.json"]
        flags += ["--mevis_pred_path", f"{self.root}/pred", "--save_name", f"{self.root}/out.json"]
        return [*flags, "--json", f"{self.root}/all.json", "--workers", "1", *more]

    def mevis(self, *more: str) -> dict[str, Any]:
        assert mevis_main(self.flags(*more)) == 0
        result: dict[str, Any] = json.loads((self.root / "all.json").read_text())
        return result

    def faults(self, *more: str) -> str:
        with pytest.raises(InputError) as error:
            mevis_main(self.flags(*more))
        assert not (self.root / "all.json").exists()
        assert not (self.root / "out.json").exists()
        return str(error.value)

    def file(self, video: str, exp_id: str, t: int) -> Path:
        return self.root / "pred" / video / exp_id / f"{FRAMES[t]}.png"


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


def test_davis_numbers_masks_by_sorted_text(data: Data) -> None:
    """Videos and expression ids are sorted as text ("10" before "2") and numbered through."""
    order = sorted(data.pred)
    assert [e for v, e in order if v == "v_1"] == ["0", "1", "10"]
    renumbered = {}
    for number, (video, exp_id) in enumerate(order):
        renumbered[str(number)] = [encode_rle(data.union(video, exp_id, t)) for t in range(len(FRAMES))]
    (data.root / "masks.json").write_text(json.dumps(renumbered))
    assert davis_main(data.flags()) == 0
    result = json.loads((data.root / "all.json").read_text())
    for one in result["expressions"]:
        assert one["J"] == np.mean(data.scores(one["video"], one["exp_id"])["J"])
    assert json.loads((data.root / "out.json").read_text()) == {
        key: round(100 * result[key], 2) for key in ("J", "F", "J&F")
    }


@pytest.mark.parametrize("option", [["--uint8_decay"], ["--davis_path", "x"]])
def test_options_of_the_other_davis_protocol_are_refused(data: Data, option: list[str]) -> None:
    with pytest.raises(InputError, match=f"{option[0]} belongs to --protocol four-annotators"):
        davis_main(data.flags(*option))


def test_pickle_is_refused(data: Data) -> None:
    (data.root / "masks.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match="pickle"):
        davis_main(data.flags("--mevis_mask_path", f"{data.root}/masks.pkl"))


def revos_result(data: Data, *more: str) -> dict[str, Any]:
    every = {
        v: {"masks_rle": [encode_rle(np.any([m[t] for m in data.truth.values()], axis=0)) for t in range(3)]}
        for v in data.meta["videos"]
    }
    (data.root / "foreground.json").write_text(json.dumps(every))
    flags = ["--visa_exp_path", f"{data.root}/meta.json", "--visa_mask_path", f"{data.root}/masks.json"]
    flags += ["--visa_foreground_mask_path", f"{data.root}/foreground.json", "--json", f"{data.root}/all.json"]
    assert revos_main([*flags, "--visa_pred_path", f"{data.root}/pred", "--workers", "1", *more]) == 0
    result: dict[str, Any] = json.loads((data.root / "all.json").read_text())
    return result


def test_revos_binary_accuracy_and_robustness(data: Data) -> None:
    foreground = [np.any([m[t] for m in data.truth.values()], axis=0) for t in range(3)]
    for one in revos_result(data)["expressions"]:
        a, r = [], []
        for t, pred in enumerate(data.pred[one["video"], one["exp_id"]]):
            gt = data.union(one["video"], one["exp_id"], t)
            a.append((gt == pred).mean())
            r.append(max(1 - (pred & ~gt).sum() / (foreground[t].sum() + 1e-6), 0))
        assert [one["A"], one["R"]] == pytest.approx([np.mean(a), np.mean(r)], abs=1e-12)


def test_revos_groups_and_rounding(data: Data) -> None:
    result = revos_result(data)
    types = {(v, e): x["type_id"] for v, c in data.meta["videos"].items() for e, x in c["expressions"].items()}
    by_group: dict[int, list[Any]] = {}
    for one in result["expressions"]:
        by_group.setdefault(types[one["video"], one["exp_id"]], []).append(one)
    want = [np.mean([e["J"] for e in by_group[g]]) for g in (0, 1)]
    assert result["J"] == pytest.approx(np.mean(want))  # groups weigh the same; type 2 does not count
    shown = json.loads((data.root / "revos_valid.json").read_text())
    rounded = [np.mean([round(100 * e["J"], 2) for e in by_group[g]]) for g in (0, 1)]
    assert shown["overall"]["J"] == pytest.approx(np.mean(rounded), abs=1e-12)
    rows = (data.root / "revos_valid.csv").read_text().splitlines()
    assert len(rows) == 1 + len(types)
    assert '"say, 0"' in rows[1]
    for video in data.meta["videos"].values():
        for entry in video["expressions"].values():
            entry["type_id"] = min(entry["type_id"], 0)
    (data.root / "meta.json").write_text(json.dumps(data.meta))
    only = revos_result(data)
    assert only["groups"]["reason"]["J"] is None
    assert only["J"] == only["groups"]["referring"]["J"]


def test_revos_foreground_faults(data: Data) -> None:
    revos_result(data)
    flags = ["--visa_exp_path", f"{data.root}/meta.json", "--visa_mask_path", f"{data.root}/masks.json"]
    flags += [
        "--visa_pred_path",
        f"{data.root}/pred",
        "--visa_foreground_mask_path",
        f"{data.root}/foreground.json",
    ]
    content = json.loads((data.root / "foreground.json").read_text())
    content["v"]["masks_rle"].pop()
    del content["v_1"]
    (data.root / "foreground.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"(?s)v_1: not in the foreground.*: v: 2 masks for 3 frames"):
        revos_main([*flags, "--workers", "1"])
    with pytest.raises(InputError, match="pixel_value"):
        revos_main([*flags, "--pixel_value", "0"])


def reason_data(data: Data) -> list[str]:
    """The same masks in ReasonVOS layout: one object per expression, ids that are not positions."""
    videos = {}
    for video, entry in data.meta["videos"].items():
        listed = []
        for n, exp_id in enumerate(entry["expressions"]):
            listed.append({"obj_id": n + 3, "exp_id": exp_id, "exp_text": "text", "is_sent": False})
            folder = data.root / "Annotations" / f"MOSE_{video}_{n + 3}"
            folder.mkdir(parents=True)
            for t, name in enumerate(FRAMES):
                write_mask_png(folder / f"{name}.png", data.union(video, exp_id, t))
        videos[video] = {"source": "MOSE", "frames": FRAMES, "expressions": listed}
    (data.root / "reason.json").write_text(json.dumps({"videos": videos}))
    flags = ["--meta_exp_path", f"{data.root}/reason.json", "--mask_path", f"{data.root}/Annotations"]
    flags += ["--save_name", f"{data.root}/reason_out", "--json", f"{data.root}/all.json", "--workers", "1"]
    return flags


def test_reason_vos_layouts(data: Data) -> None:
    flags = reason_data(data)
    for layout, names in {
        (): lambda v, e, n: (v, e),
        ("--pred_layout", "object"): lambda v, e, n: (f"MOSE_{v}_{n + 3}", e),
        ("--exp_folder", "position"): lambda v, e, n: (v, str(n)),
    }.items():
        root = data.root / "-".join(("reason", *layout))
        for video, entry in data.meta["videos"].items():
            for n, exp_id in enumerate(entry["expressions"]):
                folder = root.joinpath(*names(video, exp_id, n))
                folder.mkdir(parents=True)
                for name, mask in zip(FRAMES, data.pred[video, exp_id], strict=True):
                    write_mask_png(folder / f"{name}.png", mask)
        assert reason_vos_main([*flags, "--pred_path", str(root), *layout]) == 0
        found = json.loads((data.root / "reason_out").read_text())
        assert len(found) == len(data.pred)
        assert found["MOSE_v_1_4_1"] == pytest.approx([np.mean(v) for v in data.scores("v_1", "1").values()])


def test_reason_vos_missing_ground_truth(data: Data) -> None:
    flags = reason_data(data)
    folder = data.root / "Annotations" / "MOSE_v_3"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with pytest.raises(InputError, match="MOSE_v_3: no such folder"):
        reason_vos_main([*flags, "--pred_path", f"{data.root}/pred"])


def refytvos_data(root: Path) -> tuple[list[str], dict[str, list[Any]], dict[str, list[Any]]]:
    """Label maps with two objects; predictions per expression."""
    rng = np.random.default_rng(1)
    truth: dict[str, list[Any]] = {"1": [], "2": []}
    (root / "Annotations" / "v").mkdir(parents=True)
    for name in FRAMES:
        labels = rng.integers(0, 3, SHAPE).astype(np.uint8)
        cv2.imwrite(str(root / "Annotations" / "v" / f"{name}.png"), labels)
        for key in truth:
            truth[key].append(labels == int(key))
    pred = {"0": [random_mask(rng, *SHAPE) for _ in FRAMES], "1": [random_mask(rng, *SHAPE) for _ in FRAMES]}
    for exp_id, masks in pred.items():
        (root / "pred" / "v" / exp_id).mkdir(parents=True)
        for name, mask in zip(FRAMES, masks, strict=True):
            write_mask_png(root / "pred" / "v" / exp_id / f"{name}.png", mask)
    expressions = {"0": {"exp": "a", "obj_id": "2"}, "1": {"exp": "b", "obj_id": "1"}}
    (root / "meta.json").write_text(json.dumps({"videos": {"v": {"frames": FRAMES, "expressions": expressions}}}))
    flags = ["--meta_exp_path", f"{root}/meta.json", "--mask_path", f"{root}/Annotations", "--workers", "1"]
    return [*flags, "--pred_path", f"{root}/pred", "--json", f"{root}/all.json", "--per_frame"], truth, pred


def test_refytvos_with_local_masks(tmp_path: Path) -> None:
    flags, truth, pred = refytvos_data(tmp_path)
    assert refytvos_main(flags) == 0
    for one in json.loads((tmp_path / "all.json").read_text())["expressions"]:
        pairs = list(zip(truth[{"0": "2", "1": "1"}[one["exp_id"]]], pred[one["exp_id"]], strict=True))
        assert one["per_frame"] == {"J": [region(*p) for p in pairs], "F": [boundary(*p) for p in pairs]}
    (tmp_path / "Annotations" / "v" / f"{FRAMES[1]}.png").unlink()
    with pytest.raises(InputError, match=rf"{FRAMES[1]}\.png: missing"):
        refytvos_main(flags)
    assert refytvos_main([*flags, "--only_annotated"]) == 0
    assert json.loads((tmp_path / "all.json").read_text())["frames_scored"] == 4


@pytest.mark.parametrize("value", ["0", "cat", 256, None])
def test_refytvos_object_ids(tmp_path: Path, value: Any) -> None:
    flags, _, _ = refytvos_data(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["videos"]["v"]["expressions"]["0"]["obj_id"] = value
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="obj_id"):
        refytvos_main(flags)


@pytest.mark.parametrize("tool", ["mevis", "davis", "revos", "reason_vos", "refytvos"])
def test_scripts_show_help(tool: str) -> None:
    script = ROOT / "utils" / f"eval_{tool}.py"
    run = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert "--allow_missing" in run.stdout


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
