"""What is particular to Ref-DAVIS17, ReVOS, ReasonVOS and Ref-YouTube-VOS, on made-up data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from definition import boundary, random_mask, region
from expression_data import FRAMES, SHAPE, Data

from glus.errors import InputError
from glus.evaluation.expression_commands import davis_main, reason_vos_main, refytvos_main, revos_main
from glus.masks import encode_rle, write_mask_png


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


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


@pytest.mark.parametrize("option", [["--uint8_decay"], ["--davis_path", "x"], ["--set", "x"]])
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


def test_refytvos_with_local_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags, truth, pred = refytvos_data(tmp_path)
    assert refytvos_main(flags) == 0
    for one in json.loads((tmp_path / "all.json").read_text())["expressions"]:
        pairs = list(zip(truth[{"0": "2", "1": "1"}[one["exp_id"]]], pred[one["exp_id"]], strict=True))
        assert one["per_frame"] == {"J": [region(*p) for p in pairs], "F": [boundary(*p) for p in pairs]}
    (tmp_path / "Annotations" / "v" / f"{FRAMES[1]}.png").unlink()
    with pytest.raises(InputError, match=rf"{FRAMES[1]}\.png: missing"):
        refytvos_main(flags)
    assert "1 of 3 frames have no label map; --only_annotated" in caplog.text
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
