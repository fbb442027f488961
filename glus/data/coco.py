"""COCO and YouTube-VIS annotation files as clips to import.

YouTube-VIS: `videos` with `file_names`, `annotations` with `video_id` and a segmentation per frame. COCO: `images`
with `file_name`, `annotations` with `image_id` and one segmentation; a picture becomes a clip of equal frames. A
segmentation is a run-length code, compressed or not, a list of polygons, or null.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as coco

from glus.data.own import Clip, Sentence, Tracks, code, read_sentences
from glus.errors import InputError
from glus.io import expect, field, read_json, safe_name
from glus.masks import Mask, decode_rle
from glus.text.prompts import check_expression


def coco_clips(path: Path, images: Path, sentences: Path | None = None, still_frames: int = 4) -> list[Clip]:
    """Clips of an annotation file whose file names lie below `images`.

    Args:
        sentences: as for `own_clips`, videos named as the clips, objects by annotation id. Without one the
            category names are the expressions, each meaning all its objects in the clip.
        still_frames: how many frames a COCO picture becomes.

    Raises:
        InputError: a fault in a file; the message names it and the field.
    """
    content = expect(read_json(path, "annotation file"), dict, path, "(top level)")
    is_video = "videos" in content
    key, owner = ("videos", "video_id") if is_video else ("images", "image_id")
    entries = field(content, key, list, path, "(top level)")
    annotations = _by_owner(path, content, owner, "segmentations" if is_video else "segmentation")
    about = read_sentences(sentences) if sentences else {}
    categories = {} if sentences else _categories(path, content)
    clips: dict[str, Clip] = {}
    for number, entry in enumerate(entries):
        where = f"{key}[{number}]"
        files = field(entry, "file_names", list, path, where) if is_video else [
            field(entry, "file_name", str, path, where)
        ]  # fmt: skip
        if not files:
            raise InputError(f"{path}: {where}.file_names is empty; a video needs at least one frame")
        for file in files:
            safe_name(expect(file, str, path, f"{where}.file_names"), path, f"file name in {where}", nested=True)
        mine = annotations.get(field(entry, "id", int, path, where), [])
        name = _clip_name(files[0], is_video, entry["id"])
        said = about.pop(name, []) if sentences else _category_sentences(mine, categories, path)
        if name in clips:
            raise InputError(f"{path}: {where} is the second video named {name!r}")
        if said:
            read = partial(_tracks, path, mine, is_video)
            frames = [images / file for file in files]
            clips[name] = Clip(name, frames, said, read, 1 if is_video else still_frames)
    if about:
        raise InputError(f"{sentences}: there is no video {next(iter(about))!r} in {path}")
    return list(clips.values())


def _by_owner(path: Path, content: Any, owner: str, masks: str) -> dict[int, list[tuple[str, dict[str, Any]]]]:
    """Annotations, with how to name them in messages, by the video or image they belong to."""
    out: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    seen = set()
    for number, annotation in enumerate(field(content, "annotations", list, path, "(top level)")):
        where = f"annotations[{number}]"
        if field(annotation, "id", int, path, where) in seen:
            raise InputError(f"{path}: {where} is the second annotation with the id {annotation['id']}")
        seen.add(annotation["id"])
        if masks not in annotation:
            raise InputError(f"{path}: {where} has no field {masks!r}")
        out.setdefault(field(annotation, owner, int, path, where), []).append((where, annotation))
    return out


def _categories(path: Path, content: Any) -> dict[int, str]:
    names = {}
    for number, category in enumerate(field(content, "categories", list, path, "(top level)")):
        where = f"categories[{number}]"
        name = check_expression(field(category, "name", str, path, where), f"{path}: {where}.name")
        names[field(category, "id", int, path, where)] = name.replace("_", " ")
    return names


def _category_sentences(
    annotations: Sequence[tuple[str, dict[str, Any]]], categories: dict[int, str], path: Path
) -> list[Sentence]:
    objects: dict[int, list[str]] = {}
    for where, annotation in annotations:
        category = field(annotation, "category_id", int, path, where)
        if category not in categories:
            raise InputError(f"{path}: {where}.category_id {category} is in no entry of categories")
        objects.setdefault(category, []).append(str(annotation["id"]))
    return [Sentence(categories[category], tuple(ids)) for category, ids in objects.items()]


def _clip_name(file: str, is_video: bool, number: int) -> str:
    """A video is named by its folder, a picture by its file."""
    place = PurePosixPath(file)
    parts = place.parent.parts if is_video else (*place.parent.parts, place.stem)
    return "_".join(parts) or str(number)


def _tracks(
    path: Path,
    annotations: Sequence[tuple[str, dict[str, Any]]],
    is_video: bool,
    names: Sequence[str],
    size: tuple[int, int],
) -> Tracks:
    """Masks of all annotations of a clip; a picture's are the same in all its frames."""
    tracks: Tracks = {}
    for where, annotation in annotations:
        if not is_video:
            mask = segmentation_mask(annotation["segmentation"], *size, f"{path}: {where}.segmentation")
            tracks[str(annotation["id"])] = [code(mask)] * len(names)
            continue
        entries = field(annotation, "segmentations", list, path, where)
        if len(entries) != len(names):
            raise InputError(f"{path}: {where} has {len(entries)} segmentations, its video {len(names)} frames")
        tracks[str(annotation["id"])] = [
            code(segmentation_mask(entry, *size, f"{path}: {where}.segmentations[{index}]"))
            for index, entry in enumerate(entries)
        ]
    return tracks


def segmentation_mask(value: Any, height: int, width: int, where: str) -> Mask:
    """A COCO segmentation as a bool mask [height, width]; empty for null and for no polygons.

    Raises:
        InputError: none of the kinds there are, corrupt, or of another size.
    """
    if value is None or value == []:
        return np.zeros((height, width), np.bool_)
    if isinstance(value, dict):
        return decode_rle(value, height, width, where)
    fits = isinstance(value, list) and all(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(type(n) in (int, float) and math.isfinite(n) for n in polygon)
        for polygon in value
    )
    if not fits:
        raise InputError(
            f"{where} must be null, a run-length code, or polygons [[x, y, x, y, ...], ...] of 3 points or more"
        )
    return decode_rle(coco.merge(coco.frPyObjects(value, height, width)), height, width, where)
