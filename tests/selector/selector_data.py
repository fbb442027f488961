"""Annotated training data of a few kilobytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from glus.data.records import Record
from kfs.datasets import Annotated

Iou = Callable[[int, int], float | None]
"""(expression, frame) -> IoU."""


def record(video: str = "v", exp_id: str = "0", length: int = 30, text: str = "the red one") -> Record:
    return Record("mevis", video, exp_id, text, tuple(f"{i:05d}" for i in range(length)), Path("nowhere") / video)


def annotated(ious: Sequence[float | None], **fields: str) -> Annotated:
    return Annotated(record(length=len(ious), **fields), tuple(ious))  # type: ignore[arg-type]


def shade(video: int, frame: int) -> int:
    """Brightness of a frame, drawn without pattern."""
    return int(np.random.default_rng([video, frame]).integers(20, 236))


def write_set(
    root: Path, split: str, videos: Sequence[int], length: int, texts: Sequence[str] = ("the red one", "it")
) -> Path:
    """A MeViS split of grey frames, each with its `shade`, and IoU files: the brightness, 0 to 1. Returns their
    folder."""
    content = {}
    for video in videos:
        folder = root / f"mevis/{split}/JPEGImages/v_{video}"
        folder.mkdir(parents=True)
        names = [f"{frame:05d}" for frame in range(length)]
        for frame, name in enumerate(names):
            cv2.imwrite(str(folder / f"{name}.jpg"), np.full((40, 56, 3), shade(video, frame), np.uint8))
        expressions = {f"0{number}": {"exp": text, "obj_id": [0]} for number, text in enumerate(texts)}
        content[f"v_{video}"] = {"frames": names, "expressions": expressions}
        for exp_id in expressions:
            path = root / f"ious_{split}/v_{video}/{exp_id}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([shade(video, frame) / 255 for frame in range(length)]))
    (root / f"mevis/{split}/meta_expressions.json").write_text(json.dumps({"videos": content}))
    return root / f"ious_{split}"
