"""`--iou_path`: J of every frame, which the key-frame selector learns (reference kfs.md, 1 and 5.1).

    <folder>/<video>/<exp_id>.json          a list, one entry per frame of the video, frames sorted: J, or null
    <folder>/annotation-<protocol>.json     how the numbers came about

An entry is null where J is not known: the frame is not scored or has no predicted mask.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from glus.errors import InputError
from glus.evaluation.expression_report import Scored
from glus.evaluation.expressions import ExpressionScores
from glus.io import disk_errors, field, read_json, write_json

logger = logging.getLogger(__name__)

Absent = Literal["one", "zero", "skip"]
"""What a frame counts in which neither the ground truth nor the prediction has a pixel: 1 (J's own definition, and
the original's), 0, or nothing (null). A predicted pixel where there is no object makes it 0 under each of them."""
ABSENT: tuple[Absent, ...] = ("one", "zero", "skip")


def frame_ious(scores: ExpressionScores, absent: Absent) -> list[float | None]:
    """J by frame of the video, frames sorted."""
    empty = {"one": 1.0, "zero": 0.0, "skip": None}[absent]
    known: dict[str, float | None] = {}
    for name, region, seen, nothing in zip(scores.frames, scores.region, scores.seen, scores.nothing, strict=True):
        if seen:
            known[name] = empty if nothing else region
    return [known.get(name) for name in scores.video_frames]


def save_frame_ious(folder: Path, protocol: str, scored: Scored, absent: Absent, predictions: Path) -> None:
    """Write the files above. Numbers keep all their digits; failed expressions get no file.

    Args:
        predictions: the masks that were scored; what their run says of itself goes into the description.

    Raises:
        InputError: the folder holds numbers of another policy.
    """
    about = folder / f"annotation-{protocol}.json"
    check_policy(folder, absent)
    sound = [s for s in scored.kept if not s.faults]
    lists = [frame_ious(s, absent) for s in sound]
    run = predictions / ".glus" / "run.json"
    content: dict[str, Any] = {
        "protocol": protocol,
        "absent": absent,
        "expressions": len(sound),
        "frames": sum(map(len, lists)),
        "frames_without_a_number": sum(values.count(None) for values in lists),
        "frames_without_the_object": sum(sum(s.nothing) for s in sound),
        "predictions": str(predictions),
        "run": read_json(run, "record of the run") if run.is_file() else None,
    }
    with disk_errors(about):  # first: files of a run that is killed have a policy, too
        folder.mkdir(parents=True, exist_ok=True)
        write_json(about, content)
    for s, values in zip(sound, lists, strict=True):
        target = folder / s.expression.video / f"{s.expression.exp_id}.json"
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_json(target, values, indent=None)
    logger.info("wrote %s/<video>/<exp_id>.json of %d expressions", folder, len(sound))


def check_policy(folder: Path, absent: str | None = None) -> str | None:
    """The policy of a folder of IoU files by its descriptions; None where there is none.

    Raises:
        InputError: they disagree with each other, or with `absent`.
    """
    for path in sorted(folder.glob("annotation-*.json")):
        found = field(read_json(path, "description of IoU files"), "absent", str, path, "(top level)")
        if absent is not None and found != absent:
            raise InputError(
                f"{path}: frames without the object were annotated as {found!r}, not as {absent!r}; "
                "annotate into another folder, or all with the same --absent"
            )
        absent = str(found)
    return absent
