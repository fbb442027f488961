"""From score files to key frames (reference kfs.md, 7.2).

Scores lie at `<video>/<expression>/<frame>.json` as `{"iou": number}`. Two forms come out: the original's
`{"<video>_<expression>": frame number}`, which GLUS reads, and one with everything that led to it:

    {"<video>": {"<expression>": {"key_frame": "<frame>", "score": number, "scores": {"<frame>": number}}}}
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glus.errors import InputError
from glus.io import disk_errors, expect, field, read_json, write_json

Scores = dict[str, dict[str, dict[str, float]]]
"""video -> expression -> frame name -> score, frames by number."""


@dataclass(frozen=True)
class KeyFrame:
    """The frame of one expression to start from."""

    video: str
    expression: str
    name: str
    score: float


def read_scores(folder: Path) -> Scores:
    """All scores below `folder`. Files that are no `.json`, and hidden ones, are left alone.

    Raises:
        InputError: no folder; nothing in it, or in a video or expression; a file that is no score, or not finite;
            frame names that are no numbers or the same one; expressions of a video with different frames.
    """
    scores: Scores = {}
    for place in _folders(folder):
        for name, expression in _expressions(place, place.name):
            scores.setdefault(name, {})[expression.name] = read_expression(expression)
    for video, expressions in scores.items():
        (first, frames), *others = expressions.items()
        for name, found in others:
            _same_names(frames, found, f"{folder / video / name}: frames, unlike those of expression {first}")
    return scores


def _expressions(folder: Path, video: str) -> Iterator[tuple[str, Path]]:
    """Folders of expressions below `folder` with their videos, whose names may contain `/` (ReVOS)."""
    for place in _folders(folder):
        inner = [path for path in place.iterdir() if not path.name.startswith(".")]
        if any(path.is_dir() for path in inner) and not any(path.suffix == ".json" for path in inner):
            yield from _expressions(place, f"{video}/{place.name}")
        else:
            yield video, place


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the one that holds <video>/<expression>/<frame>.json")
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise InputError(f"{folder} holds no folders; the scores of its frames are missing, score them again")
    return found


def read_expression(folder: Path) -> dict[str, float]:
    """The scores of one expression, `<folder>/<frame>.json`, frames by number; errors as in `read_scores`."""
    files = [path for path in folder.glob("*.json") if not path.name.startswith(".")]
    if not files:
        raise InputError(f"{folder} holds no score files; score the expression again")
    numbers: dict[int, Path] = {}
    for path in files:
        if not (path.stem.isascii() and path.stem.isdigit()):
            raise InputError(f"{path}: the name of a frame must be a number")
        if (other := numbers.setdefault(int(path.stem), path)) is not path:
            raise InputError(f"{path} and {other.name} are the same frame; remove one of them")
    return {numbers[number].stem: _read_score(numbers[number]) for number in sorted(numbers)}


def _read_score(path: Path) -> float:
    score = float(field(read_json(path, "score file"), "iou", (int, float), path, "(top level)"))
    if not math.isfinite(score):
        raise InputError(f"{path}: the score is {score}; score the frame again")
    return score


def check_complete(scores: Scores, meta: Path) -> None:
    """Compare with a data set's `meta_expressions.json`; raises InputError naming what is missing or surplus."""
    videos: dict[str, Any] = field(read_json(meta, "expressions"), "videos", dict, meta, "(top level)")
    _same_names(videos, scores, f"{meta}: videos")
    for video, entry in videos.items():
        expressions = field(entry, "expressions", dict, meta, f"videos.{video}")
        names = field(entry, "frames", list, meta, f"videos.{video}")
        frames = [expect(name, str, meta, f"videos.{video}.frames") for name in names]
        _same_names(expressions, scores[video], f"{meta}: expressions of video {video}")
        for expression, found in scores[video].items():
            _same_names(frames, found, f"{meta}: frames of video {video}, expression {expression}")


def _same_names(wanted: Sequence[str] | dict[str, Any], found: dict[str, Any], what: str) -> None:
    missing, surplus = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    for names, fault in ((missing, "has no scores"), (surplus, "has scores but is not in the list")):
        if names:
            counts = f"{len(wanted)} wanted, {len(found)} scored"
            raise InputError(f"{what}: {names[0]} {fault} ({counts}); score the set again")


def choose(scores: Scores) -> list[KeyFrame]:
    """The frame with the highest score of every expression; among equals the lowest number."""
    chosen = []
    for video, expressions in scores.items():
        for expression, frames in expressions.items():
            name = max(frames, key=frames.__getitem__)  # the first of equals, and frames are in order
            chosen.append(KeyFrame(video, expression, name, frames[name]))
    return chosen


def legacy_form(chosen: Sequence[KeyFrame]) -> dict[str, int]:
    """`{"<video>_<expression>": frame number}`.

    Raises:
        InputError: ids with underscores that give two expressions the same key.
    """
    table: dict[str, int] = {}
    for key_frame in chosen:
        key = f"{key_frame.video}_{key_frame.expression}"
        if key in table:
            raise InputError(
                f"two expressions have the key {key}, one is {key_frame.expression} of {key_frame.video}"
            )
        table[key] = int(key_frame.name)
    return table


def detailed_form(scores: Scores, chosen: Sequence[KeyFrame]) -> dict[str, dict[str, Any]]:
    """The form with all scores; see the head of this module."""
    table: dict[str, dict[str, Any]] = {video: {} for video in scores}
    for k in chosen:
        frames = scores[k.video][k.expression]
        table[k.video][k.expression] = {"key_frame": k.name, "score": k.score, "scores": frames}
    return table


def write_forms(scores: Scores, out: Path, detailed: Path | None) -> int:
    """Choose key frames and write both forms; returns how many. Raises as `legacy_form`, before it writes."""
    chosen = choose(scores)
    legacy = legacy_form(chosen)
    if detailed is not None:
        with disk_errors(detailed):
            write_json(detailed, detailed_form(scores, chosen))
    with disk_errors(out):
        write_json(out, legacy)
    return len(legacy)


def main(argv: Sequence[str]) -> int:
    """The command `kfs/utils/extract_key_frame.py`."""
    parser = argparse.ArgumentParser(
        prog="extract_key_frame.py", description="Choose the frame with the highest score of every expression."
    )
    parser.add_argument("scores", type=Path, help="folder of <video>/<expression>/<frame>.json")
    parser.add_argument("--out", type=Path, required=True, help='for GLUS: {"<video>_<expression>": frame number}')
    parser.add_argument(
        "--detailed", type=Path, help="also write the key frames with the scores of all frames here"
    )
    parser.add_argument(
        "--meta", type=Path, help="meta_expressions.json: all its frames must have scores, no other"
    )
    args = parser.parse_args(argv)
    scores = read_scores(args.scores)
    if args.meta is not None:
        check_complete(scores, args.meta)
    count = write_forms(scores, args.out, args.detailed)
    sys.stdout.write(f"{count} key frames in {args.out}\n")
    return 0
