"""`python -m glus data check` on sound sets in every layout, and on every kind of damage."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from glus.__main__ import main as glus
from glus.data.check import Report, check
from glus.data.datasets import DATASETS
from glus.data.synthetic import SyntheticConfig
from glus.data.synthetic.writer import SetArguments, write_set
from glus.errors import InputError
from glus.masks import decode_rle, write_mask_png

CONFIG = SyntheticConfig(width=96, height=80, frames=8, min_sentences=4, max_sentences=6)
FIRST, SECOND = "syn1_00000", "syn1_00001"


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small sound set in every layout, all made from one synthetic set."""
    data = tmp_path_factory.mktemp("data")
    mevis = write_set(data, SetArguments("valid_u", 2, 1, CONFIG))
    meta = json.loads((mevis / "meta_expressions.json").read_text())
    masks = json.loads((mevis / "mask_dict.json").read_text())
    shutil.copytree(mevis, data / "mevis" / "train")
    (data / "mevis" / "train" / "generator.json").unlink()
    for root, expressions in (("ReVOS", "meta_expressions_valid_.json"), ("LVVIS", "meta_expressions.json")):
        shutil.copytree(mevis / "JPEGImages", data / root / ("train" if root == "LVVIS" else "") / "JPEGImages")
        _write(data / root / expressions, meta)
        _write(data / root / "mask_dict.json", masks)
    for root, split in (("Refer-YouTube-VOS", "train"), ("DAVIS17", "valid")):
        shutil.copytree(mevis / "JPEGImages", data / root / split / "JPEGImages")
        _write(data / root / "meta_expressions" / split / "meta_expressions.json", _palette_meta(meta))
        _palette_masks(meta, masks, data / root / split / "Annotations")
    shutil.copytree(mevis / "JPEGImages", data / "ReasonVOS" / "JPEGImages")
    _write(data / "ReasonVOS" / "meta_expressions.json", _listed_meta(meta))
    for video, entry in meta["videos"].items():
        for anno, frame, rle in _tracks(entry, masks):
            folder = data / "ReasonVOS" / "Annotations" / f"MOSE_{video}_{anno}"
            folder.mkdir(parents=True, exist_ok=True)
            write_mask_png(folder / f"{frame}.png", decode_rle(rle, CONFIG.height, CONFIG.width, "mask"))
    return data


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _tracks(entry: Any, masks: Any) -> list[tuple[int, str, Any]]:
    annos = sorted({a for expression in entry["expressions"].values() for a in expression["anno_id"]})
    return [(a, f, rle) for a in annos for f, rle in zip(entry["frames"], masks[str(a)], strict=True)]


def _palette_meta(meta: Any) -> Any:
    """One object per expression, ids from 1, as text."""
    videos = {}
    for video, entry in meta["videos"].items():
        expressions = {
            key: {"exp": value["exp"], "obj_id": str(value["anno_id"][0] + 1)}
            for key, value in entry["expressions"].items()
        }
        videos[video] = {"frames": entry["frames"], "expressions": expressions}
    return {"videos": videos}


def _palette_masks(meta: Any, masks: Any, folder: Path) -> None:
    for video, entry in meta["videos"].items():
        (folder / video).mkdir(parents=True)
        labels = {f: np.zeros((CONFIG.height, CONFIG.width), np.uint8) for f in entry["frames"]}
        for anno, frame, rle in _tracks(entry, masks):
            labels[frame][decode_rle(rle, CONFIG.height, CONFIG.width, "mask")] = anno + 1
        for frame, picture in labels.items():
            image = Image.fromarray(picture, "P")
            image.putpalette([n * 7 % 256 for n in range(768)])
            image.save(folder / video / f"{frame}.png")


def _listed_meta(meta: Any) -> Any:
    videos = {}
    for video, entry in meta["videos"].items():
        expressions = [
            {"exp_id": int(key), "exp_text": value["exp"], "obj_id": value["anno_id"][0], "is_sent": True}
            for key, value in entry["expressions"].items()
        ]
        videos[video] = {"source": "MOSE", "frames": entry["frames"], "expressions": expressions}
    return {"videos": videos}


SPLITS = [
    ("mevis", "valid_u"),
    ("mevis", "train"),
    ("refyoutube_vos", "train"),
    ("davis17", "valid"),
    ("revos", "valid"),
    ("lvvis", "train"),
    ("reasonvos", "valid"),
]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("dataset", "split"), SPLITS)
def test_sound_sets_have_no_faults(sound: Path, dataset: str, split: str, deep: bool) -> None:
    report = check(dataset, sound, split, deep=deep)
    assert report.faults == []
    assert report.counts["videos"] == 2
    assert report.counts["frames"] == 2 * CONFIG.frames
    assert report.counts["masks"] > 2 * CONFIG.frames / 2
    assert report.counts["expressions"] >= 2 * CONFIG.min_sentences


def test_the_counts_are_those_of_the_files(sound: Path) -> None:
    folder = sound / "mevis" / "valid_u"
    videos = json.loads((folder / "meta_expressions.json").read_text())["videos"]
    masks = json.loads((folder / "mask_dict.json").read_text())
    named = {a for v in videos.values() for e in v["expressions"].values() for a in e["anno_id"]}
    assert check("mevis", sound, "valid_u").counts == {
        "videos": len(videos),
        "expressions": sum(len(v["expressions"]) for v in videos.values()),
        "frames": len(list(folder.glob("JPEGImages/*/*.jpg"))),
        "annotations": len(named),
        "masks": sum(rle is not None for a in named for rle in masks[str(a)]),
    }


def test_workers_find_the_same(sound: Path) -> None:
    assert check("mevis", sound, "valid_u", deep=True, workers=2) == check("mevis", sound, "valid_u", deep=True)


Damage = Callable[[Path], None]


def change(path: str, edit: Callable[[Any], Any]) -> Damage:
    """Edit a JSON file; `edit` changes the value in place or returns another."""

    def damage(folder: Path) -> None:
        value = json.loads((folder / path).read_text())
        other = edit(value)
        (folder / path).write_text(json.dumps(value if other is None else other))

    return damage


def meta(edit: Callable[[Any], Any]) -> Damage:
    return change("meta_expressions.json", lambda value: edit(value["videos"]))


def track(edit: Callable[[list[Any]], Any]) -> Damage:
    """Edit the first annotation that an expression of the first video names."""

    def damage(folder: Path) -> None:
        videos = json.loads((folder / "meta_expressions.json").read_text())["videos"]
        anno = str(videos[FIRST]["expressions"]["0"]["anno_id"][0])
        change("mask_dict.json", lambda masks: edit(masks[anno]))(folder)

    return damage


def replace(path: str, data: bytes) -> Damage:
    return lambda folder: (folder / path).write_bytes(data) and None


def cut(path: str) -> Damage:
    """Keep the first half of a file."""

    def damage(folder: Path) -> None:
        data = (folder / path).read_bytes()
        (folder / path).write_bytes(data[: len(data) // 2])

    return damage


def resize(path: str) -> Damage:
    return lambda folder: cv2.imwrite(str(folder / path), np.zeros((50, 60, 3), np.uint8)) and None


def twice(path: str, key: str) -> Damage:
    """Repeat a key of a JSON object."""

    def damage(folder: Path) -> None:
        text = (folder / path).read_text()
        assert text.count(f'"{key}": ') == 1
        (folder / path).write_text(text.replace(f'"{key}": ', f'"{key}": 1, "{key}": '))

    return damage


def first_mask(edit: Callable[[dict[str, Any]], Any]) -> Damage:
    return track(lambda entries: edit(next(e for e in entries if e is not None)))


FRAME = f"JPEGImages/{FIRST}/00002.jpg"
# name -> (damage to mevis/valid_u, what a fault says, found without --deep)
MEVIS: dict[str, tuple[Damage, str, bool]] = {
    "frame missing": (lambda f: (f / FRAME).unlink(), rf"{FRAME}: missing", True),
    "frame empty": (replace(FRAME, b""), rf"{FRAME}: empty file", True),
    "frame no jpeg": (replace(FRAME, b"\x89PNG\r\n"), rf"{FRAME}: not a JPEG", True),
    "frame header only": (replace(FRAME, b"\xff\xd8\xff\xe0"), rf"{FRAME}", True),
    "frame truncated": (cut(FRAME), rf"{FRAME} is truncated", False),
    "frame of another size": (resize(FRAME), r"60x50 pixels, other frames are 96x80", True),
    "folder missing": (lambda f: shutil.rmtree(f / "JPEGImages" / SECOND), rf"{SECOND}: folder missing", True),
    "no frames": (meta(lambda v: v[FIRST].update(frames=[])), r"frames is empty", True),
    "frames field missing": (meta(lambda v: v[FIRST].pop("frames") and None), r"has no field 'frames'", True),
    "frames of another type": (meta(lambda v: v[FIRST].update(frames="00000")), r"frames must be list", True),
    "frame twice": (meta(lambda v: v[FIRST]["frames"].append("00000")), r"lists '00000' twice", True),
    "frame leaves": (meta(lambda v: v[FIRST]["frames"].append("../x")), r"not a plain file name", True),
    "frames unsorted": (meta(lambda v: v[FIRST]["frames"].reverse()), r"not in the order of their names", True),
    "video leaves": (meta(lambda v: v.update({"../x": v.pop(FIRST)})), r"video id '../x' is not a plain", True),
    "no videos": (meta(lambda v: v.clear()), r"lists no videos", True),
    "video missing": (meta(lambda v: v.pop(SECOND) and None), r"made with 2 videos, found 1", True),
    "video twice": (twice("meta_expressions.json", FIRST), rf"key '{FIRST}' twice", True),
    "no expressions": (meta(lambda v: v[FIRST].update(expressions={})), rf"{FIRST} has no expressions", True),
    "expression empty": (meta(lambda v: v[FIRST]["expressions"]["0"].update(exp=" ")), r"expressions\.0", True),
    "expression marker": (meta(lambda v: v[FIRST]["expressions"]["0"].update(exp="[SEG]")), r"\[SEG\]", True),
    "exp no text": (meta(lambda v: v[FIRST]["expressions"]["0"].update(exp=3)), r"exp must be str", True),
    "no anno_id": (meta(lambda v: v[FIRST]["expressions"]["0"].update(anno_id=[])), r"no anno_id", True),
    "anno_id unknown": (meta(lambda v: v[FIRST]["expressions"]["0"].update(anno_id=[77])), r"77 .* missing", True),
    "anno_id of two videos": (
        meta(lambda v: v[SECOND]["expressions"]["0"].update(anno_id=v[FIRST]["expressions"]["0"]["anno_id"])),
        rf"belongs to video {FIRST}, too",
        True,
    ),
    "height differs": (meta(lambda v: v[FIRST].update(height=90)), r"expression file says 96x90", True),
    "width no number": (meta(lambda v: v[FIRST].update(width="96")), r"width must be int", True),
    "masks too few": (track(lambda t: t.pop() and None), r"7 masks for 8 frames|masks for 8 frames", True),
    "masks no list": (
        change("mask_dict.json", lambda m: dict.fromkeys(m, 3)), r"must be a list of run-length codes", True,
    ),
    "mask size": (first_mask(lambda e: e.update(size=[80, 97])), r"describes fewer pixels|96x80", True),
    "mask other size": (
        first_mask(lambda e: e.update(size=[10, 10], counts="T3")), r"mask of 10x10, frame of 96x80", True,
    ),
    "mask corrupt": (first_mask(lambda e: e.update(counts=e["counts"][:-3])), r"corrupt RLE", True),
    "mask no counts": (first_mask(lambda e: e.pop("counts") and None), r"counts", True),
    "masks no object": (change("mask_dict.json", lambda m: [1]), r"must be dict", True),
    "masks broken": (cut("mask_dict.json"), r"not valid JSON", True),
    "expressions broken": (cut("meta_expressions.json"), r"not valid JSON", True),
    "card no object": (replace("generator.json", b"[]"), r"generator\.json: .* must be dict", True),
    "expressions no object": (replace("meta_expressions.json", b"[]"), r"must be dict", True),
}  # fmt: skip


@pytest.mark.parametrize("name", MEVIS)
def test_damage_is_named(sound: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message, shallow = MEVIS[name]
    folder = tmp_path / "mevis" / "valid_u"
    shutil.copytree(sound / "mevis" / "valid_u", folder)
    damage(folder)
    command = ["data", "check", "mevis", "--data_dir", str(tmp_path), "--workers", "1"]
    assert glus([*command, "--deep", "--all"]) == 2
    said = capsys.readouterr()
    assert re.search(message, said.out + said.err), said.out + said.err
    assert "Traceback" not in said.out + said.err
    assert glus(command) == (2 if shallow else 0)


def test_the_damage_table_starts_from_a_sound_set(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert glus(["data", "check", "mevis", "--data_dir", str(sound)]) == 0
    assert "no faults" in capsys.readouterr().out


PALETTE: dict[str, tuple[Damage, str]] = {
    "mask missing": (lambda f: (f / FIRST / "00001.png").unlink(), r"00001\.png: missing"),
    "mask empty": (replace(f"{FIRST}/00001.png", b""), r"00001\.png: empty file"),
    "mask truncated": (cut(f"{FIRST}/00001.png"), r"00001\.png: truncated PNG"),
    "mask of another size": (
        lambda f: Image.fromarray(np.ones((5, 6), np.uint8), "P").save(f / FIRST / "00001.png"),
        r"mask of 6x5, frame of 96x80",
    ),
    "masks of a video missing": (lambda f: shutil.rmtree(f / FIRST), r"00000\.png: missing"),
    "object in no mask": (
        lambda f: (
            [
                Image.fromarray(np.zeros((CONFIG.height, CONFIG.width), np.uint8), "P").save(p)
                for p in (f / FIRST).glob("*.png")
            ]
            and None
        ),
        r"object \d+ of an expression is in no mask",
    ),
}


@pytest.mark.parametrize("name", PALETTE)
@pytest.mark.parametrize(("dataset", "split"), [("refyoutube_vos", "train"), ("davis17", "valid")])
def test_damage_to_palette_masks(sound: Path, tmp_path: Path, dataset: str, split: str, name: str) -> None:
    damage, message = PALETTE[name]
    root = Path(DATASETS[dataset].masks).parts[0]
    shutil.copytree(sound / root, tmp_path / root)
    damage(tmp_path / root / split / "Annotations")
    assert re.search(message, check(dataset, tmp_path, split, deep=True).text(everything=True))


def test_damage_to_object_folders(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound / "ReasonVOS", tmp_path / "ReasonVOS")
    folder = min((tmp_path / "ReasonVOS" / "Annotations").iterdir())
    cut("00000.png")(folder)
    assert "truncated PNG" in check("reasonvos", tmp_path, "valid", deep=True).text()
    shutil.rmtree(folder)
    assert "0 folders for object" in check("reasonvos", tmp_path, "valid").text()


def test_a_split_without_masks_is_sound_unless_it_is_for_training(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound / "mevis", tmp_path / "mevis")
    for split in ("valid_u", "train"):
        (tmp_path / "mevis" / split / "mask_dict.json").unlink()
    without = check("mevis", tmp_path, "valid_u")
    assert without.faults == []
    assert "no masks here" in without.text()
    assert "training needs masks" in check("mevis", tmp_path, "train").text()


def test_other_counts_than_published_are_remarked_on(sound: Path) -> None:
    report = check("mevis", sound, "train")
    assert report.faults == []
    assert any("1662 videos and 23051 expressions" in note for note in report.notes)


def test_files_in_no_list_are_remarked_on(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound / "mevis", tmp_path / "mevis")
    folder = tmp_path / "mevis" / "valid_u" / "JPEGImages" / FIRST
    shutil.copy(folder / "00000.jpg", folder / "extra.jpg")
    report = check("mevis", tmp_path, "valid_u")
    assert report.faults == []
    assert any(note.startswith("1 frame files") for note in report.notes)


def test_the_first_faults_are_shown_and_all_on_request() -> None:
    report = Report("mevis", "valid", {"videos": 1}, [f"number {n}" for n in range(25)])
    assert "number 9" in report.text()
    assert "number 10" not in report.text()
    assert "15 more" in report.text()
    assert "number 24" in report.text(everything=True)
    assert "25 faults" in report.text()


@pytest.mark.parametrize(("dataset", "split"), [("foo", "valid"), ("mevis", "test"), ("reasonvos", "train")])
def test_unknown_sets_and_splits(sound: Path, dataset: str, split: str) -> None:
    with pytest.raises(InputError, match=r"unknown data set|has no split|not found"):
        check(dataset, sound, split)


@pytest.mark.parametrize(("argv", "status"), [([], 2), (["--help"], 0), (["nonsense"], 2), (["check", "foo"], 2)])
def test_data_command_table(argv: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert glus(["data", *argv]) == status
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.out or said.err


@pytest.mark.parametrize("name", ["synthetic", "check"])
def test_help_of_data_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        glus(["data", name, "--help"])
    assert done.value.code == 0
    assert "usage" in capsys.readouterr().out
