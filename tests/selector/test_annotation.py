"""IoU files from masks: by definition, on both data sets, under every policy; folders merged (kfs.md, 5.1)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from glus.data.datasets import load_records
from glus.errors import InputError, OutputError
from glus.masks import encode_rle, write_mask_png
from kfs.__main__ import main as kfs
from kfs.annotate import main as annotate
from kfs.datasets import check_known, read_annotations
from kfs.evaluation import compare
from kfs.merge_folders import main as merge
from kfs.merge_folders import merge_folders
from kfs.samples import SelectorData, open_source

SHAPE = (12, 20)
FRAMES = ["00010", "00000", "00005", "00015"]  # not sorted, and the position is not the number
VIDEO, OTHER = "a_b_0", "c"
ROOT = Path(__file__).resolve().parents[2]


def rows(count: int, first: int = 0) -> Any:
    """A mask of `count` rows."""
    mask = np.zeros(SHAPE, np.bool_)
    mask[first : first + count] = True
    return mask


# By frame name: two objects, the prediction, and J of both objects together. 00015 shows nothing at all.
TRUE = {"00000": [rows(4), rows(4, 4)], "00005": [rows(4), rows(0)], "00010": [rows(0), rows(0)]}
TRUE["00015"] = [rows(0), rows(0)]
PREDICTED = {"00000": rows(4), "00005": rows(4), "00010": rows(1), "00015": rows(0)}
IOU = {"00000": 0.5, "00005": 1.0, "00010": 0.0, "00015": 1.0}


def write_predictions(folder: Path, skipped: tuple[str, ...] = ()) -> Path:
    """Of the expressions `007` of both videos."""
    for video in (VIDEO, OTHER):
        place = folder / video / "007"
        place.mkdir(parents=True)
        for name in FRAMES:
            if name not in skipped or video == OTHER:
                write_mask_png(place / f"{name}.png", PREDICTED[name])
    return folder


def meta(**ids: Any) -> str:
    entry = {"exp": "a dog", **ids}
    return json.dumps(
        {"videos": {name: {"frames": FRAMES, "expressions": {"007": entry}} for name in (VIDEO, OTHER)}}
    )


def write_mevis(root: Path) -> Path:
    folder = root / "mevis" / "train"
    folder.mkdir(parents=True)
    (folder / "meta_expressions.json").write_text(meta(anno_id=[0, 1], obj_id=[0, 1]))
    masks = {
        str(number): [encode_rle(TRUE[name][number]) if TRUE[name][number].any() else None for name in FRAMES]
        for number in range(2)
    }
    (folder / "mask_dict.json").write_text(json.dumps(masks))
    return root


def write_youtube(root: Path, annotated: list[str] = FRAMES) -> Path:
    """Object 3 in label maps; what the MeViS set calls two objects is one here."""
    folder = root / "Refer-YouTube-VOS"
    (folder / "meta_expressions" / "train").mkdir(parents=True)
    (folder / "meta_expressions" / "train" / "meta_expressions.json").write_text(meta(obj_id="3"))
    for video in (VIDEO, OTHER):
        place = folder / "train" / "Annotations" / video
        place.mkdir(parents=True)
        for name in annotated:
            labels = np.full(SHAPE, 1, np.uint8) * ~(TRUE[name][0] | TRUE[name][1]) + 3 * (
                TRUE[name][0] | TRUE[name][1]
            )
            cv2.imwrite(str(place / f"{name}.png"), labels.astype(np.uint8))
    return root


WRITE = {"mevis_train": write_mevis, "refytvos_train": write_youtube}


def arguments(root: Path, dataset: str, *more: str) -> list[str]:
    places = ["--dataset_dir", str(root), "--pred_path", str(root / "pred"), "--iou_path", str(root / "iou")]
    return ["--dataset", dataset, *places, "--workers", "1", *more]


def ious(root: Path, video: str = VIDEO) -> Any:
    return json.loads((root / "iou" / video / "007.json").read_text())


@pytest.mark.parametrize("dataset", WRITE)
@pytest.mark.parametrize(("absent", "empty"), [("one", 1.0), ("zero", 0.0), ("skip", None)])
def test_by_definition(tmp_path: Path, dataset: str, absent: str, empty: float | None) -> None:
    """Defects 13, 19 and 21: a writer for both sets, ids as they are, frames sorted, the policy a choice."""
    WRITE[dataset](tmp_path)
    write_predictions(tmp_path / "pred")
    (tmp_path / "pred" / ".glus").mkdir()
    (tmp_path / "pred" / ".glus" / "run.json").write_text('{"version": "glus-s"}')
    assert kfs(["annotate", *arguments(tmp_path, dataset, "--absent", absent)]) == 0
    wanted = {**IOU, "00015": empty}
    assert ious(tmp_path) == ious(tmp_path, OTHER) == [wanted[name] for name in sorted(FRAMES)]
    protocol = "mevis" if dataset == "mevis_train" else "refytvos"
    about = json.loads((tmp_path / "iou" / f"annotation-{protocol}.json").read_text())
    assert (about["absent"], about["expressions"], about["frames"]) == (absent, 2, 8)
    assert about["frames_without_the_object"] == 2
    assert about["frames_without_a_number"] == (2 if absent == "skip" else 0)
    assert about["run"] == {"version": "glus-s"}
    names = {"mevis_train": "mevis", "refytvos_train": "refyoutube_vos"}
    records = load_records(names[dataset], tmp_path, "train")
    found = read_annotations(tmp_path / "iou", records)
    assert [dict(zip(one.record.frames, one.ious, strict=True)) for one in found] == [wanted] * 2


def test_frames_without_a_true_mask_have_no_iou(tmp_path: Path) -> None:
    """The position in the list stays that of the frame in the video."""
    write_youtube(tmp_path, ["00000", "00010"])
    write_predictions(tmp_path / "pred")
    assert annotate(arguments(tmp_path, "refytvos_train")) == 0
    assert ious(tmp_path) == [0.5, None, 0.0, None]


@pytest.mark.parametrize("dataset", WRITE)
def test_missing_masks_are_an_error_or_null_but_never_0(tmp_path: Path, dataset: str) -> None:
    WRITE[dataset](tmp_path)
    write_predictions(tmp_path / "pred", skipped=("00000", "00015"))
    with pytest.raises(InputError, match="00000: missing"):
        annotate(arguments(tmp_path, dataset))
    assert not list((tmp_path / "iou").glob("*/*.json"))
    assert annotate(arguments(tmp_path, dataset, "--allow_missing")) == 0
    assert ious(tmp_path) == [None, 1.0, 0.0, None]
    assert ious(tmp_path, OTHER) == [0.5, 1.0, 0.0, 1.0]


def test_bad_input(tmp_path: Path) -> None:
    write_mevis(tmp_path)
    (tmp_path / "pred").mkdir()
    with pytest.raises(InputError, match="faults: 2"):  # an empty folder of predictions
        annotate(arguments(tmp_path, "mevis_train"))
    write_predictions(tmp_path / "pred")
    for dataset, message in (
        ("mevis_tran", "unknown data set 'mevis_tran'; known: mevis_train"),
        ("mevis_val", "splits there: train"),
        ("refytvos_train", "no split of it is there"),
        ("reasonvos:valid", "not found"),
    ):
        with pytest.raises(InputError, match=message):
            annotate(arguments(tmp_path, dataset))
    assert annotate(arguments(tmp_path, "mevis_train")) == 0
    with pytest.raises(InputError, match=r"annotated as 'one', not as 'skip'.*another folder"):
        annotate(arguments(tmp_path, "mevis_train", "--absent", "skip"))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file"):
        annotate([*arguments(tmp_path, "mevis_train"), "--iou_path", str(tmp_path / "file")])
    (tmp_path / "mevis" / "train" / "mask_dict.json").unlink()
    with pytest.raises(InputError, match=r"mask_dict\.json is missing"):
        annotate(arguments(tmp_path, "mevis_train"))


@pytest.mark.parametrize("absent", ["one", "zero", "skip"])
def test_the_policy_reaches_training_and_the_choice(tmp_path: Path, absent: str) -> None:
    """Defect 21: the last frame shows nothing. By the original it is as good a target as any; it need not be."""
    write_mevis(tmp_path)
    write_predictions(tmp_path / "pred")
    for video in (VIDEO, OTHER):
        place = tmp_path / "mevis" / "train" / "JPEGImages" / video
        place.mkdir(parents=True)
        for name in FRAMES:
            (place / f"{name}.jpg").touch()  # nothing is decoded before training
    assert annotate(arguments(tmp_path, "mevis_train", "--absent", absent)) == 0
    data = SelectorData(str(tmp_path), "mevis_train", iou_path=str(tmp_path / "iou"), frame_range=(4, 4))
    source = open_source(data)
    drawn = [source.draw(np.random.default_rng(number), number) for number in range(60)]
    targets = {draw.target: draw.expressions[0].ious[draw.target] for draw in drawn}
    wanted = {"one": {3: 1.0}, "zero": {3: 0.0}, "skip": {}}[absent]
    assert targets == {0: 0.5, 1: 1.0, 2: 0.0, **wanted}
    scores = {video: {"007": dict.fromkeys(sorted(FRAMES), 0.0) | {"00015": 9.0}} for video in (VIDEO, OTHER)}
    assert compare(scores, tmp_path / "iou").chosen == (1.0 if absent == "one" else 0.0)


def test_an_annotation_of_other_videos_is_refused(tmp_path: Path) -> None:
    """A list of wrong length, and an expression the data set does not know."""
    records = load_records("mevis", write_mevis(tmp_path), "train")
    write_predictions(tmp_path / "pred")
    assert annotate(arguments(tmp_path, "mevis_train")) == 0
    check_known(tmp_path / "iou", records)
    file = tmp_path / "iou" / VIDEO / "007.json"
    file.with_name("8.json").write_text(file.read_text())
    with pytest.raises(InputError, match=rf"no expression 8 of a video {VIDEO}"):
        check_known(tmp_path / "iou", records)
    file.write_text("[0.5, 1.0]")
    with pytest.raises(InputError, match=r"007\.json: 2 IoUs for 4 frames"):
        read_annotations(tmp_path / "iou", records)


def test_the_policy_needs_a_folder(tmp_path: Path) -> None:
    from glus.evaluation.expression_commands import mevis_main

    write_mevis(tmp_path)
    write_predictions(tmp_path / "pred")
    folder = tmp_path / "mevis" / "train"
    flags = ["--mevis_exp_path", str(folder / "meta_expressions.json"), "--absent", "zero", "--workers", "1"]
    flags += ["--mevis_mask_path", str(folder / "mask_dict.json"), "--mevis_pred_path", str(tmp_path / "pred")]
    with pytest.raises(InputError, match="--absent says what --iou_path writes"):
        mevis_main([*flags, "--save_name", str(tmp_path / "out.json")])


def test_no_torch() -> None:
    code = "import sys, kfs.annotate, kfs.merge_folders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_merging_folders(tmp_path: Path) -> None:
    """Defect 12: names with blanks and quotes, a second run, files that are there already."""
    one = {"v 1/0.json": "[1]", "it's; $(x)/0.json": "[0]", "annotation-mevis.json": '{"absent": "one"}'}
    other = {"v2/0.json": "[0.5]", "v 1/0.json": "[1]", "annotation-refytvos.json": '{"absent": "one"}'}
    sources = [write_tree(tmp_path / "one", one), write_tree(tmp_path / "two", {**other, ".hidden/x": "y"})]
    target = tmp_path / "joint"
    assert merge_folders(sources, target) == 5
    assert tree(target) == {**one, **other}
    assert merge_folders(sources, target) == 0
    (target / "v2" / "0.json").unlink()  # as if killed before it
    script = [sys.executable, str(ROOT / "kfs" / "utils" / "merge_folder.py")]
    done = subprocess.run([*script, *map(str, sources), "--out", str(target)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"1 files copied to {target}\n")
    assert tree(target) == {**one, **other}


def test_folders_that_cannot_be_merged(tmp_path: Path) -> None:
    one = write_tree(tmp_path / "one", {"v/0.json": "[1]", "w/0.json": "[1]"})
    other = write_tree(tmp_path / "two", {"v/0.json": "[0]"})
    target = tmp_path / "joint"
    with pytest.raises(InputError, match=r"nothing was copied:\n.*two/v/0\.json and .*one/v/0\.json"):
        merge_folders([one, other], target)
    assert not target.exists()
    write_tree(target, {"w/0.json": "[0]"})
    with pytest.raises(InputError, match=r"one/w/0\.json and .*joint/w/0\.json"):
        merge([str(one), "--out", str(target)])
    assert tree(target) == {"w/0.json": "[0]"}
    flat = write_tree(tmp_path / "flat", {"v": "x"})
    for sources, place in (([flat, one], tmp_path / "new"), ([one], flat)):
        with pytest.raises(InputError, match=r"nothing was copied:\n.*flat/v, a file, and a folder v"):
            merge_folders(sources, place)
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is empty"):
        merge_folders([one, tmp_path / "empty"], tmp_path / "new")
    with pytest.raises(InputError, match="nowhere is not a folder"):
        merge_folders([tmp_path / "nowhere"], tmp_path / "new")
    with pytest.raises(InputError, match="within each other"):
        merge_folders([one], one / "joint")
    (one / "link").symlink_to(other)
    with pytest.raises(InputError, match="link is a link"):
        merge_folders([one], tmp_path / "new")
    write_tree(tmp_path / "a", {"annotation-mevis.json": '{"absent": "one"}'})
    write_tree(tmp_path / "b", {"annotation-refytvos.json": '{"absent": "skip"}'})
    with pytest.raises(InputError, match="annotated as 'skip', not as 'one'"):
        merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_whole_files(tmp_path: Path, small_disk: Path) -> None:
    source = write_tree(tmp_path / "one", {f"v/{n}.json": "1" * 300_000 for n in range(6)})
    with pytest.raises(OutputError, match="free some space"):
        merge_folders([source], small_disk / "joint")
    assert set(tree(small_disk).values()) == {"1" * 300_000}
