"""What a report draws on: runs with their masks and scores, true masks, kinds of expressions. All is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glus import io
from glus.data.records import Record
from glus.errors import InputError
from glus.evaluation.expression_files import Video, read_mask_lists
from glus.evaluation.revos import GROUPS
from glus.masks import Mask, decode_rle, read_mask
from glus.overlay import Colour

Key = tuple[str, str]
"""Video and exp_id."""
Groups = dict[str, dict[str, list[Key]]]
"""What expressions are grouped by -> name of a group -> its expressions."""
SEEN_IN_ONE_FRAME = ("ends_", "nearest_end")
"""Claims of the synthetic set that count as motion, but that the last frame answers alone."""
_ORDER = ("static", "relation", "motion", "motion, several frames needed")
_TOTALS = ("J", "F", "J&F", "A", "R")


def key_of(record: Record) -> Key:
    return record.video, record.exp_id


@dataclass(frozen=True)
class Scores:
    """Scores of one expression, 0..1.

    Attributes:
        by_frame: J of the scored frames, in the record's order; empty where the evaluator did not say.
    """

    region: float
    boundary: float
    both: float
    by_frame: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A results folder.

    Attributes:
        masks: `<video>/<exp_id>/<frame>.png`.
        totals: J, F, J&F (ReVOS: A, R) of the whole set, as the evaluator averages; empty when not scored.
        summary: the run's `summary.json`, or nothing.
    """

    name: str
    masks: Path
    colour: Colour
    totals: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[Key, Scores] = field(default_factory=dict)
    missing: int = 0
    summary: Mapping[str, Any] = field(default_factory=dict)

    def predicted(self, record: Record, index: int, shape: Sequence[int]) -> Mask:
        """Mask of a frame, which must be there and of the frame's size."""
        path = self.masks / record.video / record.exp_id / f"{record.frames[index]}.png"
        mask = read_mask(path)
        if mask.shape != tuple(shape[:2]):
            raise InputError(f"{path} is {mask.shape[1]}x{mask.shape[0]}, its frame {shape[1]}x{shape[0]}")
        return mask


@dataclass(frozen=True)
class Truth:
    """True masks.

    Attributes:
        codes: mask dictionary `{anno_id: [run-length code or null per frame]}`, or nothing.
        frames: names of a video's frames in the order of those lists, which is not always the sorted one.
    """

    codes: Mapping[str, Any]
    frames: Mapping[str, Sequence[str]]

    def mask(self, record: Record, index: int, shape: Sequence[int]) -> Mask | None:
        """Union of the masks of the expression's objects; None if one is not known.

        Raises:
            InputError: a list of another length than the video, or a damaged code.
        """
        if not record.anno_ids or any(key not in self.codes for key in record.anno_ids):
            return None
        place = self.frames[record.video].index(record.frames[index])
        height, width = shape[:2]
        masks = []
        for key in record.anno_ids:
            codes = io.expect(self.codes[key], list, "mask dictionary", key)
            if len(codes) != len(record):
                raise InputError(f"mask dictionary: {key} has {len(codes)} masks for {len(record)} frames")
            masks.append(decode_rle(codes[place], height, width, f"mask dictionary, frame {place} of {key}"))
        return np.asarray(np.logical_or.reduce(masks))


def read_truth(videos: Sequence[Video], mask_path: Path | None) -> Truth:
    """True masks to outline, where they are run-length codes."""
    codes = {} if mask_path is None else read_mask_lists(mask_path, "mask dictionary")
    return Truth(codes, {video.name: video.frames for video in videos})


def group(videos: Sequence[Video], records: Sequence[Record]) -> Groups:
    """Expressions by what the set says of them: `type` (ReVOS: `type_id`), `claim` (synthetic), objects meant."""
    out: Groups = {"type": {}, "claim": {}, "objects meant": {}}
    fields = {(video.name, entry.exp_id): entry.fields for video in videos for entry in video.entries}
    revos = {number: name for name, number in GROUPS.items()}
    for record in records:
        key = key_of(record)
        told = fields[key]
        kind, claim = told.get("type"), told.get("predicate")
        if kind is None and isinstance(told.get("type_id"), int):
            kind = revos.get(told["type_id"], "other")
        names = {"type": kind, "claim": claim}
        if "anno_id" in told or "obj_id" in told:
            names["objects meant"] = {0: "none", 1: "one"}.get(len(record.anno_ids or record.obj_ids), "several")
        for by, name in names.items():
            if isinstance(name, str):
                out[by].setdefault(name, []).append(key)
        if kind == "motion" and isinstance(claim, str) and not claim.startswith(SEEN_IN_ONE_FRAME):
            out["type"].setdefault("motion, several frames needed", []).append(key)
    order = {name: number for number, name in enumerate(_ORDER)}
    return {
        by: dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
        for by, found in out.items()
        if len(found) > 1
    }


def _share(value: Any, path: Path, where: str) -> float:
    """A score: a number in 0..1, which NaN is not."""
    number = float(io.expect(value, (float, int), path, where))
    if not 0 <= number <= 1:
        raise InputError(f"{path}: field {where} must be between 0 and 1, found {number}")
    return number


def _frame_scores(row: Mapping[str, Any], record: Record, path: Path, where: str) -> dict[str, float]:
    """J by frame name in the record's order; nothing without `per_frame`."""
    if "per_frame" not in row:
        return {}
    here = f"{where}.per_frame"
    values = io.field(io.field(row, "per_frame", dict, path, where), "J", list, path, here)
    names = io.field(row, "frames", list, path, where) if "frames" in row else list(record.frames)
    if len(names) != len(values) or not set(names) <= set(record.frames):
        raise InputError(f"{path}: {here} is of other frames than the video's; score the masks again")
    known = {name: _share(value, path, f"{here}.J") for name, value in zip(names, values, strict=True)}
    return {name: known[name] for name in record.frames if name in known}


def read_run(
    name: str, masks: Path, colour: Colour, scored: tuple[Path, Any] | None, records: Mapping[Key, Record]
) -> Run:
    """A run with its scores.

    Args:
        scored: the evaluator's JSON (`--json`) and the file to name in messages.

    Raises:
        InputError: a field is missing or of another kind, or an expression is not among `records`.
    """
    summary_path = masks / "summary.json"
    summary = io.read_json(summary_path, "summary of the run") if summary_path.exists() else {}
    for entry in ("frames", "failures", "frames_this_run", "frames_per_second") if summary else ():
        io.field(summary, entry, (int, float), summary_path, "(top level)")
    if scored is None:
        return Run(name, masks, colour, summary=summary)
    path, result = scored
    for total in _TOTALS[:3]:
        io.field(result, total, (float, int), path, "(top level)")
    totals = {total: _share(result[total], path, total) for total in _TOTALS if total in result}
    scores = {}
    for i, row in enumerate(io.field(result, "expressions", list, path, "(top level)")):
        where = f"expressions[{i}]"
        key = (io.field(row, "video", str, path, where), io.field(row, "exp_id", str, path, where))
        if key not in records:
            raise InputError(f"{path}: {where}: {'/'.join(key)} is not an expression of the set")
        region, boundary, both = (
            _share(io.field(row, part, (float, int), path, where), path, f"{where}.{part}")
            for part in ("J", "F", "J&F")
        )
        scores[key] = Scores(region, boundary, both, _frame_scores(row, records[key], path, where))
    missing = io.expect(result.get("missing_frames", 0), int, path, "missing_frames")
    return Run(name, masks, colour, totals, scores, missing, summary)


def read_starts(path: Path | None) -> dict[str, Any]:
    """Key frames with all scores (`kfs.key_frames`) by video and expression; nothing without a file."""
    if path is None:
        return {}
    starts: dict[str, Any] = io.expect(io.read_json(path, "key frames"), dict, path, "(top level)")
    for video, entries in starts.items():
        for exp_id, entry in io.expect(entries, dict, path, video).items():
            io.expect(entry, dict, path, f"{video}.{exp_id}")
    return starts
