"""Readers of the referring-video data sets: an expression file in, records out (reference glus.md 4.1, 4.2).

Each data set keeps the folder layout of its original distribution below one data folder. A reader opens its
JSON once (D5) and checks every field it uses, so that a fault is reported before any work starts.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glus.data.records import Record
from glus.errors import InputError
from glus.io import expect, field, read_json, safe_name
from glus.text.prompts import check_expression

logger = logging.getLogger(__name__)

TRAINING_SPLIT = "train"
_NAMED = 5  # videos a message names


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its parts, relative to the data folder; `{split}` is the set's name.

    Attributes:
        splits: the only splits there are; empty where `{split}` folders decide.
        nested_videos: video names may contain `/`.
        listed: expressions are a list with their own ids (reasonvos), and frames keep the file's order;
            otherwise expressions are keyed by id and frames are sorted.
        masks: run-length codes by annotation (a `.json` file), or a folder of PNGs; not every split has them.
        may_be_empty: an expression without annotations means nothing that is there, instead of a fault.
    """

    frames: str
    expressions: str
    masks: str
    splits: tuple[str, ...] = ()
    nested_videos: bool = False
    listed: bool = False
    may_be_empty: bool = False


DATASETS = {
    "mevis": Layout(
        "mevis/{split}/JPEGImages", "mevis/{split}/meta_expressions.json", "mevis/{split}/mask_dict.json"
    ),
    "refyoutube_vos": Layout(
        "Refer-YouTube-VOS/{split}/JPEGImages",
        "Refer-YouTube-VOS/meta_expressions/{split}/meta_expressions.json",
        "Refer-YouTube-VOS/{split}/Annotations",
    ),
    "davis17": Layout(
        "DAVIS17/{split}/JPEGImages",
        "DAVIS17/meta_expressions/{split}/meta_expressions.json",
        "DAVIS17/{split}/Annotations",
    ),
    "revos": Layout(
        "ReVOS/JPEGImages",
        "ReVOS/meta_expressions_{split}_.json",
        "ReVOS/mask_dict.json",
        nested_videos=True,
        may_be_empty=True,
    ),
    "lvvis": Layout(
        "LVVIS/train/JPEGImages", "LVVIS/meta_expressions.json", "LVVIS/mask_dict.json", splits=("train",)
    ),
    "reasonvos": Layout(
        "ReasonVOS/JPEGImages",
        "ReasonVOS/meta_expressions.json",
        "ReasonVOS/Annotations",
        splits=("valid",),
        listed=True,
    ),
}


def find_layout(dataset: str) -> Layout:
    """Layout of `dataset`.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    if dataset not in DATASETS:
        raise InputError(f"unknown data set {dataset!r}; known: {', '.join(DATASETS)}")
    return DATASETS[dataset]


def expressions_path(dataset: str, data_dir: str | os.PathLike[str], set_name: str) -> Path:
    """The expression file of a split, which exists.

    Raises:
        InputError: unknown data set or split; the message lists what there is.
    """
    layout = find_layout(dataset)
    root = Path(data_dir)
    safe_name(set_name, root, "split")
    if layout.splits and set_name not in layout.splits:
        raise InputError(f"data set {dataset} has no split {set_name!r}; it has: {', '.join(layout.splits)}")
    path = root / layout.expressions.format(split=set_name)
    if not path.is_file():
        existing = existing_splits(dataset, root)
        found = f"splits there: {', '.join(existing)}" if existing else "no split of it is there"
        raise InputError(f"data set {dataset}, split {set_name!r}: {path} not found; {found}")
    return path


def existing_splits(dataset: str, data_dir: str | os.PathLike[str]) -> list[str]:
    """Splits of `dataset` whose expression file exists below `data_dir`."""
    layout = find_layout(dataset)
    root = Path(data_dir)
    if layout.splits:
        return [name for name in layout.splits if (root / layout.expressions).is_file()]
    pattern = re.escape(layout.expressions).replace(re.escape("{split}"), "(.*)")
    paths = (path.relative_to(root).as_posix() for path in root.glob(layout.expressions.format(split="*")))
    return sorted(match[1] for match in (re.fullmatch(pattern, path) for path in paths) if match)


def load_records(
    dataset: str,
    data_dir: str | os.PathLike[str],
    set_name: str,
    min_frames: int = 1,
) -> list[Record]:
    """All records of a split, videos and expressions in file order.

    Videos listed without expressions give no records (D43); a warning counts and names them. Frame files are not
    looked at (`missing_files`).

    Args:
        data_dir: the folder that holds `mevis`, `Refer-YouTube-VOS`, ...
        min_frames: leave out shorter videos; 4 gives the list that the original works through.

    Raises:
        InputError: unknown data set or split, or a fault in the file; the message names file and field.
    """
    path = expressions_path(dataset, data_dir, set_name)
    layout = DATASETS[dataset]
    folder = Path(data_dir) / layout.frames.format(split=set_name)
    videos = read_videos(path)
    records: list[Record] = []
    silent = []
    for video, entry in videos.items():
        found = list(read_video(dataset, folder, path, video, entry))
        records += found
        if not found:
            silent.append(video)
    if silent:
        names = ", ".join(silent[:_NAMED]) + (" ..." if len(silent) > _NAMED else "")
        logger.warning("%s: %d of %d videos have no expressions: %s", path, len(silent), len(videos), names)
    kept = [record for record in records if len(record) >= min_frames]
    if len(kept) < len(records):
        count = len(records) - len(kept)
        logger.info("%s: left out %d expressions on videos below %d frames", path, count, min_frames)
    return kept


def read_videos(path: Path) -> dict[str, Any]:
    """The entries of an expression file by video name, not looked into yet."""
    videos: dict[str, Any] = field(read_json(path, "expression file"), "videos", dict, path, "(top level)")
    return videos


def read_video(dataset: str, folder: Path, path: Path, video: str, entry: Any) -> Iterator[Record]:
    """The records of one entry of `read_videos`; raises an InputError at its first fault."""
    layout = DATASETS[dataset]
    where = f"videos.{video}"
    safe_name(video, path, "video id", nested=layout.nested_videos)
    frames = _read_frames(path, where, entry, keep_order=layout.listed)
    expressions = field(entry, "expressions", list if layout.listed else dict, path, where)
    items = _listed_items(path, where, expressions) if layout.listed else expressions.items()
    seen: set[str] = set()
    for exp_id, expression in items:
        here = f"{where}.expressions.{exp_id}"
        safe_name(exp_id, path, f"expression id in {where}")
        if exp_id in seen:
            raise InputError(f"{path}: {where} has two expressions with the id {exp_id}")
        seen.add(exp_id)
        key = "exp_text" if layout.listed else "exp"
        text = field(expression, key, str, path, here)
        yield Record(
            dataset=dataset,
            video=video,
            exp_id=exp_id,
            text=check_expression(text, f"{path}: {here}.{key}"),
            frames=frames,
            frame_folder=folder / video,
            obj_ids=_read_ids(path, here, expression, "obj_id"),
            anno_ids=_read_ids(path, here, expression, "anno_id"),
        )


def _listed_items(path: Path, where: str, expressions: list[Any]) -> Iterator[tuple[str, Any]]:
    """reasonvos: the stored `exp_id` names an expression, not its position (D21)."""
    for position, expression in enumerate(expressions):
        here = f"{where}.expressions[{position}]"
        yield str(field(expression, "exp_id", (int, str), path, here)), expression


def _read_frames(path: Path, where: str, entry: Any, keep_order: bool) -> tuple[str, ...]:
    names = field(entry, "frames", list, path, where)
    if not names:
        raise InputError(f"{path}: {where}.frames is empty; a video needs at least one frame")
    for position, name in enumerate(names):
        expect(name, str, path, f"{where}.frames[{position}]")
        safe_name(name, path, f"{where}.frames[{position}]")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: {where}.frames lists {twice!r} twice")
    return tuple(names if keep_order else sorted(names))


def _read_ids(path: Path, where: str, expression: Any, key: str) -> tuple[str, ...]:
    """Object or annotation ids as text; sets store one id or a list, as numbers or text, or none."""
    value = expression.get(key, [])
    for one in value if isinstance(value, list) else [value]:
        expect(one, (int, str), path, f"{where}.{key}")
    return tuple(str(one) for one in (value if isinstance(value, list) else [value]))
