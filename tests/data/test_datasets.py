"""Readers of all data sets on small trees written here, and every kind of fault in their files."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glus.data import datasets
from glus.data.datasets import DATASETS, existing_splits, load_records
from glus.data.records import Record, missing_files
from glus.errors import InputError
from glus.io import read_json

KEYED: dict[str, Any] = {
    "videos": {
        "v2": {
            "frames": ["00010", "00000", "00005"],
            "expressions": {
                "1": {"exp": "The dog.", "obj_id": [2, 0], "anno_id": [31, 29]},
                "0": {"exp": "a cat"},
            },
        },
        "v1": {"frames": ["a"], "expressions": {"x_0": {"exp": "left || right", "obj_id": "1"}}},
    }
}
LISTED: dict[str, Any] = {
    "videos": {
        "v": {
            "source": "MOSE",
            "frames": ["2", "10", "1"],
            "expressions": [
                {"exp_id": 5, "exp_text": "what could cut paper?", "obj_id": 1, "is_sent": True},
                {"exp_id": 3, "exp_text": "the sharp one", "obj_id": 2, "is_sent": False},
            ],
        }
    }
}
# data set -> (split, expression file, frame folder), as their distributions lie
TREES = {
    "mevis": ("valid_u", "mevis/valid_u/meta_expressions.json", "mevis/valid_u/JPEGImages"),
    "refyoutube_vos": (
        "valid",
        "Refer-YouTube-VOS/meta_expressions/valid/meta_expressions.json",
        "Refer-YouTube-VOS/valid/JPEGImages",
    ),
    "davis17": (
        "valid",
        "DAVIS17/meta_expressions/valid/meta_expressions.json",
        "DAVIS17/valid/JPEGImages",
    ),
    "revos": ("valid", "ReVOS/meta_expressions_valid_.json", "ReVOS/JPEGImages"),
    "lvvis": ("train", "LVVIS/meta_expressions.json", "LVVIS/train/JPEGImages"),
    "reasonvos": ("valid", "ReasonVOS/meta_expressions.json", "ReasonVOS/JPEGImages"),
}


def write_meta(root: Path, dataset: str, meta: Any, split: str | None = None) -> Path:
    default, path, _ = TREES[dataset]
    target = root / (path.replace(default, split) if split else path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(meta if isinstance(meta, str) else json.dumps(meta))
    return target


def load(root: Path, dataset: str, meta: Any) -> list[Record]:
    write_meta(root, dataset, meta)
    return load_records(dataset, root, TREES[dataset][0])


def changed(meta: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    """A copy of `meta` with the entry at `path` replaced; `value` is `...` to delete it."""
    result = copy.deepcopy(meta)
    place = result
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return result


def test_every_data_set_has_a_tree_here() -> None:
    assert set(TREES) == set(DATASETS)


@pytest.mark.parametrize("dataset", [name for name in TREES if name != "reasonvos"])
def test_keyed_sets(tmp_path: Path, dataset: str) -> None:
    records = load(tmp_path, dataset, KEYED)
    assert [(r.dataset, r.video, r.exp_id) for r in records] == [
        (dataset, "v2", "1"),
        (dataset, "v2", "0"),
        (dataset, "v1", "x_0"),
    ]
    first, second, third = records
    assert first.text == "The dog."
    assert first.frames == second.frames == ("00000", "00005", "00010")
    assert len(first) == 3
    assert (first.obj_ids, first.anno_ids) == (("2", "0"), ("31", "29"))
    assert (second.obj_ids, second.anno_ids) == ((), ())
    assert third.obj_ids == ("1",)
    assert first.frame_path(1) == tmp_path / TREES[dataset][2] / "v2" / "00005.jpg"


def test_reasonvos(tmp_path: Path) -> None:
    """Stored expression ids (D21), and frames in file order."""
    first, second = load(tmp_path, "reasonvos", LISTED)
    assert (first.exp_id, second.exp_id) == ("5", "3")
    assert first.text == "what could cut paper?"
    assert first.frames == ("2", "10", "1")
    assert second.obj_ids == ("2",)
    assert first.frame_path(1) == tmp_path / "ReasonVOS" / "JPEGImages" / "v" / "10.jpg"


def test_revos_videos_may_be_nested(tmp_path: Path) -> None:
    meta = {"videos": {"part/v": KEYED["videos"]["v1"]}}
    (record,) = load(tmp_path, "revos", meta)
    assert record.video == "part/v"
    assert record.frame_path(0) == tmp_path / "ReVOS" / "JPEGImages" / "part" / "v" / "a.jpg"
    with pytest.raises(InputError, match="plain file name"):
        load(tmp_path, "mevis", meta)


def test_short_videos_stay_unless_asked(tmp_path: Path) -> None:
    write_meta(tmp_path, "mevis", KEYED)
    assert len(load_records("mevis", tmp_path, "valid_u")) == 3
    assert [r.video for r in load_records("mevis", tmp_path, "valid_u", min_frames=2)] == ["v2", "v2"]


def test_video_without_expressions(tmp_path: Path) -> None:
    """D43: gives no records, and does not stop the others."""
    records = load(tmp_path, "mevis", changed(KEYED, "videos", "v2", "expressions", value={}))
    assert [r.video for r in records] == ["v1"]


def test_unknown_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown data set 'davis16'; known: mevis, refyoutube_vos"):
        load_records("davis16", tmp_path, "valid")


@pytest.mark.parametrize("dataset", ["mevis", "refyoutube_vos", "davis17", "revos"])
def test_unknown_split(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(InputError, match="no split of it is there"):
        load_records(dataset, tmp_path, "valid")
    for split in ("train", "other"):
        write_meta(tmp_path, dataset, KEYED, split=split)
    assert existing_splits(dataset, tmp_path) == ["other", "train"]
    with pytest.raises(InputError, match=r"'valid_x'.*splits there: other, train"):
        load_records(dataset, tmp_path, "valid_x")


@pytest.mark.parametrize(("dataset", "split"), [("reasonvos", "train"), ("lvvis", "valid")])
def test_split_that_cannot_be(tmp_path: Path, dataset: str, split: str) -> None:
    """Their one file has no split in its name: another split must not read it."""
    write_meta(tmp_path, dataset, LISTED if dataset == "reasonvos" else KEYED)
    assert existing_splits(dataset, tmp_path) == [TREES[dataset][0]]
    with pytest.raises(InputError, match=f"no split '{split}'; it has: {TREES[dataset][0]}"):
        load_records(dataset, tmp_path, split)


@pytest.mark.parametrize("split", ["../mevis/valid_u", "/etc", "..", ""])
def test_split_stays_inside(tmp_path: Path, split: str) -> None:
    write_meta(tmp_path, "mevis", KEYED)
    with pytest.raises(InputError, match="plain file name"):
        load_records("mevis", tmp_path, split)


ESCAPES = ["../v", "..", ".", "", "a/../b", "/etc", "a\\b", "a\nb", "\ud800"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("dataset", ["mevis", "revos"])
def test_names_stay_inside(tmp_path: Path, dataset: str, name: str) -> None:
    """Video, expression and frame names end up in paths; none may leave its folder."""
    video = KEYED["videos"]["v2"]
    bad = [
        {"videos": {name: video}},
        changed(KEYED, "videos", "v2", "frames", 1, value=name),
        changed(KEYED, "videos", "v2", "expressions", name, value={"exp": "a dog"}),
    ]
    for meta in bad:
        with pytest.raises(InputError, match="plain file name"):
            load(tmp_path, dataset, meta)


V, E = ("videos", "v2"), ("videos", "v2", "expressions", "1")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("videos",), ..., "no field 'videos'"),
        (("videos",), [], "videos must be dict"),
        (V, "x", "v2 must be dict"),
        ((*V, "frames"), ..., "v2 has no field 'frames'"),
        ((*V, "frames"), {}, "v2.frames must be list"),
        ((*V, "frames"), [], "v2.frames is empty"),
        ((*V, "frames", 2), 7, r"v2.frames\[2\] must be str"),
        ((*V, "frames", 2), "00000", "lists '00000' twice"),
        ((*V, "expressions"), ..., "v2 has no field 'expressions'"),
        ((*V, "expressions"), [], "v2.expressions must be dict"),
        (E, "a dog", "expressions.1 must be dict"),
        ((*E, "exp"), ..., "expressions.1 has no field 'exp'"),
        ((*E, "exp"), None, "expressions.1.exp must be str"),
        ((*E, "exp"), "", "expressions.1.exp is empty"),
        ((*E, "exp"), " .", "expressions.1.exp is empty"),
        ((*E, "exp"), "the [SEG]", r"expressions.1.exp contains \[SEG\]"),
        ((*E, "exp"), "an <image>", "expressions.1.exp contains <image>"),
        ((*E, "obj_id"), 1.5, "expressions.1.obj_id must be int or str"),
        ((*E, "anno_id"), [None], "expressions.1.anno_id must be int or str"),
    ],
)
def test_faulty_fields(tmp_path: Path, path: tuple[Any, ...], value: Any, message: str) -> None:
    """The message names the file and the field."""
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, "mevis", changed(KEYED, *path, value=value))
    assert str(tmp_path / TREES["mevis"][1]) in str(caught.value)


L = ("videos", "v", "expressions")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (L, {}, "expressions must be list"),
        ((*L, 1), "x", r"expressions\[1\] must be dict"),
        ((*L, 1, "exp_id"), ..., r"expressions\[1\] has no field 'exp_id'"),
        ((*L, 1, "exp_id"), None, r"expressions\[1\].exp_id must be int or str"),
        ((*L, 1, "exp_id"), "../0", "plain file name"),
        ((*L, 1, "exp_id"), "5", "two expressions with the id 5"),
        ((*L, 1, "exp_text"), ..., "expressions.3 has no field 'exp_text'"),
        ((*L, 1, "exp_text"), "  ", "expressions.3.exp_text is empty"),
    ],
)
def test_faulty_fields_in_reasonvos(tmp_path: Path, path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, "reasonvos", changed(LISTED, *path, value=value))


@pytest.mark.parametrize("text", ["", "{", '{"videos": {}}x', '{"videos": \x00}', "[" * 100_000])
def test_broken_json(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"meta_expressions\.json"):
        load(tmp_path, "mevis", text)


def test_missing_frame_files(tmp_path: Path) -> None:
    """D6: found before any work starts; every folder is listed once."""
    records = load(tmp_path, "mevis", KEYED)
    for record in records:
        record.frame_folder.mkdir(parents=True, exist_ok=True)
        for index in range(len(record)):
            record.frame_path(index).touch()
    assert missing_files(records) == []
    lost = records[0].frame_path(1)
    lost.unlink()
    assert missing_files(records) == [lost]


def test_missing_frame_folder(tmp_path: Path) -> None:
    records = load(tmp_path, "mevis", KEYED)
    assert len(missing_files(records)) == 4


@pytest.mark.parametrize("dataset", TREES)
def test_the_file_is_read_once(tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """D5: not once per expression. Workers get their expressions from the parent."""
    reads: list[Any] = []
    monkeypatch.setattr(datasets, "read_json", lambda path, what: [reads.append(path), read_json(path, what)][1])
    assert len(load(tmp_path, dataset, LISTED if dataset == "reasonvos" else KEYED)) > 1
    assert len(reads) == 1


def test_reads_without_torch() -> None:
    code = "import sys, glus.data.datasets, glus.text.labels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
