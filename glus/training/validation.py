"""Validation: held-out sentences through the real inference engine, scored by J&F (D31, D33)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glus.config import InferenceConfig
from glus.data.datasets import load_records
from glus.data.mask_sources import open_masks
from glus.data.records import Record, check_files
from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.source import Reading, texts
from glus.data.synthetic.video import generate_video
from glus.errors import InputError
from glus.evaluation.metrics import db_eval_boundary, db_eval_iou
from glus.inference.live import stream
from glus.masks import merge_instances
from glus.modeling.glus import GLUSModel
from glus.overlay import caption_strip, captioned, overlay
from glus.text.tokenizer import GlusTokenizer
from glus.training.launch import Place, gather
from glus.video import Frame, FrameSource, ImageFrames, open_frames


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        score: what the best checkpoint is chosen by, higher is better; for GLUS J&F, 0..1.
        scalars: to log, by name.
        pictures: to show, by name; uint8 (H, W, 3).
    """

    score: float
    scalars: dict[str, float]
    pictures: dict[str, Frame] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOut:
    """A video with its sentences and true masks, bool (sentences, frames, H, W)."""

    frames: FrameSource
    expressions: Sequence[str]
    masks: NDArray[np.bool_]


HeldOutList = Sequence[Callable[[], HeldOut]]
"""Videos read when their turn comes."""


class SegmentationValidator:
    """J&F over a held-out list, shared out among the ranks.

    Args:
        pictures: frames of the first video that are shown.
    """

    def __init__(
        self, videos: HeldOutList, tokenizer: GlusTokenizer, inference: InferenceConfig, pictures: int = 4
    ) -> None:
        self.videos = videos
        self.tokenizer = tokenizer
        self.inference = inference
        self.pictures = pictures

    def __call__(self, model: GLUSModel, place: Place) -> Validation:
        """Segment and score; every rank calls this and gets the same numbers, rank 0 the pictures."""
        mine = range(place.rank, len(self.videos), place.world)
        found: dict[int, list[list[float]]] = {}
        shown: dict[str, Frame] = {}
        for number in mine:
            video = self.videos[number]()
            masks, failed = segment(model, self.tokenizer, video, self.inference)
            found[number] = [
                [float(np.mean(db_eval_iou(true, mask))), float(np.mean(db_eval_boundary(true, mask))), share]
                for true, mask, share in zip(video.masks, masks, failed.mean(axis=1).tolist(), strict=True)
            ]
            if number == 0:
                shown = show(video, masks, self.pictures)
        parts: dict[int, list[list[float]]] = {}
        for part in gather(place, found):
            parts.update(part)  # type: ignore[call-overload]
        # In the order of the list, so that the sum does not depend on the number of ranks.
        rows = np.array([row for number in sorted(parts) for row in parts[number]])
        region, boundary, failures = rows.mean(axis=0).tolist()
        score = (region + boundary) / 2
        return Validation(score, {"J&F": score, "J": region, "F": boundary, "failed": failures}, shown)


def segment(
    model: GLUSModel, tokenizer: GlusTokenizer, video: HeldOut, config: InferenceConfig
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks (sentences, frames, H, W) of a video, and on which (sentence, frame) the model did not answer."""
    steps = list(stream(model, tokenizer, video.frames, video.expressions, config))
    masks = np.stack([np.stack([result.mask for result in step]) for step in steps], axis=1)
    return masks, np.array([[result.failed for result in step] for step in steps]).T


def show(video: HeldOut, masks: NDArray[np.bool_], count: int) -> dict[str, Frame]:
    """Frames of the video with what was found, one colour per sentence, its sentences below."""
    if not count:
        return {}
    strip = caption_strip(video.frames[0].shape[1], video.expressions)
    chosen = np.linspace(0, len(video.frames) - 1, min(count, len(video.frames)), dtype=int).tolist()
    return {f"frame_{i:03d}": captioned(overlay(video.frames[i], masks[:, i]), strip) for i in chosen}


def records_held_out(dataset: str, data_dir: str | Path, split: str, limit: int) -> HeldOutList:
    """About `limit` sentences of a split, on whole videos evenly spread over it.

    Raises:
        InputError: the split is missing, faulty or without masks, or lacks frames.
    """
    records = load_records(dataset, data_dir, split)
    source = open_masks(dataset, Path(data_dir), split)
    source.check(records)
    videos: dict[str, list[Record]] = {}
    for record in records:
        videos.setdefault(record.video, []).append(record)
    if not videos:
        raise InputError(f"data set {dataset}, split {split!r} has no expression to validate on")
    each = len(records) / len(videos)
    count = min(len(videos), max(1, round(limit / each)))
    names = list(videos)
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, count, dtype=int)]
    check_files(dataset, (videos[name][0] for name in chosen))  # not hours later

    def reader(group: list[Record]) -> Callable[[], HeldOut]:
        def read() -> HeldOut:
            first = group[0]
            frames = ImageFrames([first.frame_path(i) for i in range(len(first))], first.frames)
            size = (frames[0].shape[0], frames[0].shape[1])
            every = range(len(first))
            masks = [merge_instances(source.masks(record, every, size)) > 0 for record in group]
            return HeldOut(frames, [record.text for record in group], np.stack(masks))

        return read

    return [reader(videos[name]) for name in chosen]


def synthetic_held_out(
    seed: int, limit: int, config: SyntheticConfig | None = None, expressions: Reading = "read"
) -> HeldOutList:
    """About `limit` sentences of generated videos of the series `seed`, which training never draws from."""
    config = config or SyntheticConfig()
    count = max(1, round(limit / ((config.min_sentences + config.max_sentences) / 2)))

    def reader(index: int) -> Callable[[], HeldOut]:
        def read() -> HeldOut:
            video = generate_video(seed, index, config)
            masks = np.stack([video.target(sentence) for sentence in video.sentences])
            return HeldOut(open_frames(video.frames), texts(video.sentences, expressions), masks)

        return read

    return [reader(index) for index in range(count)]
