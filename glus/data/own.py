"""Your own data: sentences about folders of frames or video files, with masks as PNGs or run-length codes.

docs/own_data.md describes the format. Everything becomes `Clip`s, which `glus.data.importing` writes; COCO and
YouTube-VIS files become clips in `glus.data.coco`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from glus.errors import InputError
from glus.evaluation import png
from glus.evaluation.labels import folder_names, present_ids
from glus.io import expect, field, read_json
from glus.masks import Mask, decode_rle, encode_rle, read_mask
from glus.text.prompts import check_expression
from glus.video import IMAGE_SUFFIXES, READ_SUFFIXES, natural_key

Pixel = TypeVar("Pixel", np.bool_, np.uint8)
Tracks = dict[str, list[dict[str, Any] | None]]
"""By object: a run-length code for each frame, None where nothing of it is seen."""
ReadMasks = Callable[[Sequence[str], tuple[int, int]], Tracks]
"""(frame names, (height, width)) -> the masks of every object of a clip."""


@dataclass(frozen=True)
class Sentence:
    """What is said about a clip. objects: keys of its masks; none means all of them."""

    text: str
    objects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    """One video to import.

    Attributes:
        frames: image files in their order, or a video file.
        masks: reads the masks; None where there are none.
        repeat: show every frame so many times (a picture as a clip).
    """

    name: str
    frames: list[Path] | Path
    sentences: list[Sentence]
    masks: ReadMasks | None = None
    repeat: int = 1


def read_sentences(path: Path) -> dict[str, list[Sentence]]:
    """Sentences by video, from a CSV with the columns video, expression and perhaps objects, or a JSON list.

    Raises:
        InputError: not such a file; the message names line or entry and field.
    """
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    sentences: dict[str, list[Sentence]] = {}
    for where, row in rows:
        video = field(row, "video", str, path, where).strip()
        text = check_expression(field(row, "expression", str, path, where), f"{path}: {where}.expression").strip()
        objects = row.get("objects")
        objects = "" if objects is None else expect(objects, (str, int, list), path, f"{where}.objects")
        if isinstance(objects, str):
            objects = [part for part in re.split(r"[\s;,]+", objects) if part]
        parts = objects if isinstance(objects, list) else [objects]
        names = tuple(str(expect(part, (int, str), path, f"{where}.objects")) for part in parts)
        sentences.setdefault(video, []).append(Sentence(text, names))
    if not sentences:
        raise InputError(f"{path} holds no sentences")
    return sentences


def _csv_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            rows = [(f"line {reader.line_num}", dict(row)) for row in reader]
            columns = reader.fieldnames or []
    except FileNotFoundError:
        raise InputError(f"sentence file not found: {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from None
    for column in ("video", "expression"):
        if column not in columns:
            raise InputError(f"{path} has no column {column!r}; it has: {', '.join(columns) or 'none'}")
    for where, row in rows:
        if None in row:
            raise InputError(f"{path}: {where} has more fields than the header; quote a text that holds a comma")
    return rows


def _json_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = expect(read_json(path, "sentence file"), list, path, "(top level)")
    for number, row in enumerate(rows):
        expect(row, dict, path, f"[{number}]")
    return [(f"[{number}]", row) for number, row in enumerate(rows)]


def own_clips(videos: Path, sentences: Path, masks: Path | None) -> list[Clip]:
    """Clips of a folder whose entries are folders of frames or video files, named as in the sentence file.

    Args:
        masks: a folder of PNGs (see `png_masks`) or a JSON `{video: {object: [run-length code or null, ...]}}`.

    Raises:
        InputError: something is missing or cannot be read.
    """
    if not videos.is_dir():
        raise InputError(f"{videos}: no such folder; --videos holds one folder of frames or one video file each")
    by_video = read_sentences(sentences)
    found: dict[str, Path] = {}
    for path in sorted(path for path in videos.iterdir() if _is_video(path)):
        other = found.setdefault(path.stem if path.is_file() else path.name, path)
        if other is not path:
            raise InputError(f"{other} and {path} would be one video; rename one of them")
    for video in by_video:
        if video not in found:
            raise InputError(f"{sentences}: there is no video {video!r} in {videos}")
    codes = None
    if masks is not None and not masks.is_dir():
        codes = expect(read_json(masks, "mask file", unique_keys=True), dict, masks, "(top level)")
    clips = []
    for video, about in by_video.items():
        read: ReadMasks | None = None
        if codes is not None and masks is not None:
            read = partial(_coded_masks, masks, video, field(codes, video, dict, masks, "(top level)"))
        elif masks is not None:
            read = partial(png_masks, masks / video)
        frames = found[video] if found[video].is_file() else image_files(found[video])
        clips.append(Clip(video, frames, about, read))
    return clips


def _is_video(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() in READ_SUFFIXES)


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in natural order of their names.

    Raises:
        InputError: there are none.
    """
    files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(files, key=lambda file: (natural_key(file.stem), file.name))


def png_masks(folder: Path, names: Sequence[str], size: tuple[int, int]) -> Tracks:
    """`<folder>/<frame>.png` with object numbers as pixels, or `<folder>/<object>/<frame>.png`.

    In the latter every pixel that is not black belongs to the object. Every frame needs its PNG, so that a
    forgotten one is not taken for an absent object.

    Raises:
        InputError: a file is missing, damaged or of another size.
    """
    if objects := folder_names(folder):
        files = {name: [folder / name / f"{frame}.png" for frame in names] for name in objects}
        return {name: [code(_sized(f, read_mask(f), size)) for f in files[name]] for name in objects}
    tracks: Tracks = {}
    for index, name in enumerate(names):
        labels = _sized(folder / f"{name}.png", png.read_labels(folder / f"{name}.png"), size)
        for number in present_ids(labels):
            tracks.setdefault(str(number), [None] * len(names))[index] = code(labels == number)
    return tracks


def _sized(file: Path, mask: NDArray[Pixel], size: tuple[int, int]) -> NDArray[Pixel]:
    if mask.shape != size:
        raise InputError(f"{file} is {mask.shape[1]}x{mask.shape[0]}, its frame {size[1]}x{size[0]}")
    return mask


def code(mask: Mask) -> dict[str, Any] | None:
    """The run-length code of a mask; None for an empty one."""
    return encode_rle(mask) if mask.any() else None


def _coded_masks(
    path: Path, video: str, tracks: dict[str, Any], names: Sequence[str], size: tuple[int, int]
) -> Tracks:
    out: Tracks = {}
    for name, entries in tracks.items():
        where = f"{video}.{name}"
        if len(expect(entries, list, path, where)) != len(names):
            raise InputError(f"{path}: {where} has {len(entries)} masks, video {video} has {len(names)} frames")
        out[name] = [
            None if entry is None else code(decode_rle(entry, *size, f"{path}: {where}[{index}]"))
            for index, entry in enumerate(entries)
        ]
    return out
