"""Read the expression, mask and prediction files of the expression protocols (evaluation.md 2), with every field
checked. Unlike the loaders for inference, frames keep the order of the file: mask lists are indexed by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glus.errors import InputError
from glus.evaluation.bitmask import MAX_PIXELS
from glus.evaluation.labels import folder_names
from glus.evaluation.tracks import PngTrack, RleTrack, Track
from glus.io import expect, field, read_json, safe_name


@dataclass(frozen=True)
class Entry:
    """One expression as the file states it, `fields` unchecked."""

    exp_id: str
    text: str
    fields: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Video:
    """One video as the file states it, `fields` unchecked."""

    name: str
    frames: tuple[str, ...]
    entries: tuple[Entry, ...]
    fields: dict[str, Any]
    where: str


def read_videos(path: Path, text_key: str = "exp") -> list[Video]:
    """The videos of a `meta_expressions.json`, in file order; expressions may be keyed by id or listed.

    Raises:
        InputError: missing file or field, wrong type, a name that is no plain file name, no frames, or a frame
            or expression named twice.
    """
    content = field(read_json(path, "expression file"), "videos", dict, path, "(top level)")
    videos = []
    for name, entry in content.items():
        where = f"videos.{name}"
        safe_name(name, path, "video id", nested=True)
        frames = field(entry, "frames", list, path, where)
        if not frames:
            raise InputError(f"{path}: {where}.frames is empty; a video needs at least one frame")
        for frame in frames:
            safe_name(expect(frame, str, path, f"{where}.frames"), path, f"{where}.frames")
        if len(set(frames)) < len(frames):
            raise InputError(f"{path}: {where}.frames lists a frame twice")
        entries = tuple(_entries(path, where, field(entry, "expressions", (dict, list), path, where), text_key))
        if len({e.exp_id for e in entries}) < len(entries):
            raise InputError(f"{path}: {where}.expressions has an exp_id twice")
        videos.append(Video(name, tuple(frames), entries, entry, where))
    if not any(video.entries for video in videos):
        raise InputError(f"{path}: no expressions to score")
    return videos


def _entries(path: Path, where: str, items: Any, text_key: str) -> Iterator[Entry]:
    """Expressions keyed by id, or (ReasonVOS) a list whose entries state their id."""
    if isinstance(items, dict):
        pairs = [(exp_id, item, f"{where}.expressions.{exp_id}") for exp_id, item in items.items()]
    else:
        places = [f"{where}.expressions[{i}]" for i in range(len(items))]
        pairs = [
            (str(field(item, "exp_id", (int, str), path, here)), item, here)
            for item, here in zip(items, places, strict=True)
        ]
    for exp_id, item, here in pairs:
        safe_name(exp_id, path, f"expression id in {where}")
        yield Entry(exp_id, field(item, text_key, str, path, here), item, here)


def id_list(fields: Mapping[str, Any], key: str, path: Path, where: str) -> tuple[str, ...]:
    """A field that holds one id or a list of ids, numbers or text, as text."""
    value = field(fields, key, (list, int, str), path, where)
    values = value if isinstance(value, list) else [value]
    return tuple(str(expect(v, (int, str), path, f"{where}.{key}")) for v in values)


def frame_size(video: Video, path: Path) -> tuple[int, int] | None:
    """(height, width) where the expression file states them."""
    if "height" not in video.fields or "width" not in video.fields:
        return None
    size = tuple(field(video.fields, key, int, path, video.where) for key in ("height", "width"))
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"{path}: {video.where}: height and width cannot be {size}")
    return size[0], size[1]


def read_mask_lists(path: Path, what: str = "mask file") -> dict[str, Any]:
    """A mask dictionary: key -> list with a run-length code or null per frame.

    Raises:
        InputError: not such a file. Pickle files are refused, because unpickling runs what the file says.
    """
    if path.suffix in (".pkl", ".pickle"):
        raise InputError(
            f"{path}: pickle files are not read; load it where you trust it and save the same mapping as JSON"
        )
    content: dict[str, Any] = expect(read_json(path, what), dict, path, "(top level)")
    return content


def mask_tracks(lists: Mapping[str, Any], keys: set[str], path: Path) -> dict[str, Track]:
    """The tracks of those `keys` that `lists` has; scoring reports the others with the expression that asks."""
    found = sorted(keys & lists.keys())
    return {key: RleTrack(expect(lists[key], list, path, key), f"{path}: annotation {key}") for key in found}


class Predictions:
    """Predicted masks: a folder `<video>/<exp_id>/<frame>.png`, or one JSON file of run-length codes.

    The JSON form is `{video: {exp_id: {"prediction_masks": [RLE per frame]}}}`; the list may also stand directly
    below `exp_id`.
    """

    def __init__(self, path: Path, opencv: bool = False) -> None:
        """Raises InputError when `path` is neither a folder nor a JSON file of a mapping."""
        self.path = path
        self.opencv = opencv
        self.content: dict[str, Any] | None = None
        self.asked: dict[str, set[str]] = {}
        if path.is_file():
            self.content = expect(read_json(path, "prediction file"), dict, path, "(top level)")
        elif not path.is_dir():
            raise InputError(f"{path}: no such folder or prediction file")

    def find(self, video: str, exp_id: str) -> tuple[Track | None, str]:
        """Where the masks of an expression are (None: the JSON file has none), and how to call that place."""
        self.asked.setdefault(video, set()).add(exp_id)
        if self.content is None:
            folder = self.path / video / exp_id
            return PngTrack(folder, self.opencv), str(folder)
        place = f"{self.path}: {video}/{exp_id}"
        masks = expect(self.content.get(video, {}), dict, self.path, video).get(exp_id)
        if isinstance(masks, dict):
            masks = field(masks, "prediction_masks", list, self.path, f"{video}.{exp_id}")
        if masks is None:
            return None, place
        return RleTrack(expect(masks, list, self.path, f"{video}.{exp_id}"), place), place

    def surplus(self) -> list[str]:
        """Predicted videos and expressions that `find` was not asked for, one message each."""
        found: dict[str, Any]
        if self.content is None:
            nested = {video.split("/")[0] for video in self.asked}
            found = {name: () for name in folder_names(self.path) if name not in nested}
            found |= {
                video: folder_names(self.path / video) for video in self.asked if (self.path / video).is_dir()
            }
        else:
            found = self.content
        faults = [
            f"{self.path}: {name} is not a video of the set" for name in sorted(found.keys() - self.asked.keys())
        ]
        for video in sorted(found.keys() & self.asked.keys()):
            for exp_id in sorted(set(found[video]) - self.asked[video]):
                faults.append(f"{self.path}: {video}/{exp_id} is not an expression of the set")
        return faults
