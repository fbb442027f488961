"""Training data of every layout, a few kilobytes each, with masks that are known without reading them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from glus.masks import encode_rle

HEIGHT, WIDTH = 24, 40
TRAINABLE = ("mevis", "refyoutube_vos", "davis17", "revos", "lvvis")
PALETTE = ("refyoutube_vos", "davis17")
# data set -> (frames, expressions, masks), as the distributions lie
PLACES = {
    "mevis": ("mevis/train/JPEGImages", "mevis/train/meta_expressions.json", "mevis/train/mask_dict.json"),
    "refyoutube_vos": (
        "Refer-YouTube-VOS/train/JPEGImages",
        "Refer-YouTube-VOS/meta_expressions/train/meta_expressions.json",
        "Refer-YouTube-VOS/train/Annotations",
    ),
    "davis17": (
        "DAVIS17/train/JPEGImages",
        "DAVIS17/meta_expressions/train/meta_expressions.json",
        "DAVIS17/train/Annotations",
    ),
    "revos": ("ReVOS/JPEGImages", "ReVOS/meta_expressions_train_.json", "ReVOS/mask_dict.json"),
    "lvvis": ("LVVIS/train/JPEGImages", "LVVIS/meta_expressions.json", "LVVIS/mask_dict.json"),
}


@dataclass(frozen=True)
class Clip:
    """A video of `length` frames; object 1 moves right, object 2 left, and they overlap; object 2 leaves.

    sentences: text -> objects.
    """

    name: str
    length: int
    sentences: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def frames(self) -> list[str]:
        return [f"{2 * i:05d}" for i in range(self.length)]

    def mask(self, thing: int, index: int) -> np.ndarray:
        """bool [HEIGHT, WIDTH]"""
        out = np.zeros((HEIGHT, WIDTH), np.bool_)
        left = 4 + index if thing == 1 else 20 - index
        if thing == 1 or index % 3 < 2:
            out[4 * thing : 4 * thing + 8, left : left + 12] = True
        return out

    def picture(self, index: int) -> np.ndarray:
        """uint8 [HEIGHT, WIDTH, 3]; the blue channel tells the frame, up to the JPEG."""
        out = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        out[self.mask(1, index)] = (220, 40, 40)
        out[self.mask(2, index)] = (40, 220, 40)
        out[..., 2] = 10 * index
        return out


CLIPS = (
    Clip("long", 11, (("The red one.", (1,)), ("a green box", (2,)), ("both", (1, 2)), ("what goes right", (1,)))),
    Clip("even", 8, (("the red box", (1,)), ("The green one", (2,)))),
    Clip("short", 3, (("too short to be drawn", (1,)),)),
    Clip("silent", 8, ()),
)


def anno(clip: Clip, thing: int) -> int:
    return 10 * sum(map(ord, clip.name)) + thing


def write_tree(root: Path, dataset: str, clips: Sequence[Clip] = CLIPS) -> Path:
    """Write the training split of `dataset` below `root`, which is returned."""
    frames, expressions, masks = (root / part for part in PLACES[dataset])
    videos: dict[str, Any] = {}
    tracks: dict[str, Any] = {}
    for clip in clips:
        folder = frames / clip.name
        folder.mkdir(parents=True)
        for index, name in enumerate(clip.frames):
            cv2.imwrite(str(folder / f"{name}.jpg"), clip.picture(index)[..., ::-1])
        palette = dataset in PALETTE
        videos[clip.name] = {"frames": clip.frames, "expressions": {}}
        # palette sets know one object per expression
        sentences = [(text, things) for text, things in clip.sentences if not palette or len(things) == 1]
        for number, (text, things) in enumerate(sentences):
            entry: dict[str, Any] = {"exp": text, "obj_id": str(things[0]) if palette else list(things)}
            if not palette:
                entry["anno_id"] = [anno(clip, thing) for thing in things]
            videos[clip.name]["expressions"][str(number)] = entry
        if palette:
            write_palette(masks / clip.name, clip)
        for thing in (1, 2):
            shown = [clip.mask(thing, index) for index in range(clip.length)]
            tracks[str(anno(clip, thing))] = [encode_rle(mask) if mask.any() else None for mask in shown]
    write(expressions, {"videos": videos})
    if dataset not in PALETTE:
        write(masks, tracks)
    return root


def write_palette(folder: Path, clip: Clip) -> None:
    folder.mkdir(parents=True)
    for index, name in enumerate(clip.frames):
        write_labels(folder / f"{name}.png", palette_labels(clip, index))


def write_labels(path: Path, labels: np.ndarray) -> None:
    image = Image.fromarray(labels.astype(np.uint8), "P")
    image.putpalette([n * 7 % 256 for n in range(768)])
    image.save(path)


def palette_labels(clip: Clip, index: int) -> np.ndarray:
    """uint8 [HEIGHT, WIDTH]; object 2 lies over object 1."""
    return np.where(clip.mask(2, index), 2, clip.mask(1, index)).astype(np.uint8)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit(path: Path, change: Any) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
