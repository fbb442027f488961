"""One job: a clip and sentences through a model, and everything a visitor can look at or keep."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glus.app.uploads import write_jpeg
from glus.errors import InputError
from glus.inference import exports
from glus.inference.queries import Query
from glus.overlay import overlay
from glus.video import FrameSource

if TYPE_CHECKING:
    from glus.api import GLUS
    from glus.inference.result import SegmentResult
    from kfs.checkpoints import Selector

# What is being done, how much of it, of how much. What it raises ends the job.
Report = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Settings:
    """What a visitor chooses beside clip and sentences."""

    model: str
    inference: Mapping[str, Any] = field(default_factory=dict)
    """fields of `InferenceConfig`; the others are what the model has learned with"""
    key_frames: bool = False
    fps: float | None = None
    """at most so many frames per second"""
    resize: int | None = None
    """pixels of the longer side at most"""
    alpha: float = 0.45


@dataclass(frozen=True)
class KeyFrame:
    """Where an expression was started from, and how good the selector held every frame to be."""

    index: int
    scores: list[float]


@dataclass(frozen=True)
class Outcome:
    """What a job leaves in its folder, and numbers by sentence and frame.

    Attributes:
        video, masks, codes: overlay mp4, zip of mask PNGs, JSON of run-length codes.
        pictures: one per frame, with its masks.
        scores: the model's predicted IoU, 0..1.
        failures: frames without an answer, by sentence.
        key_frames: by sentence; None when all started at the first frame.
    """

    sentences: list[str]
    video: Path
    masks: Path
    codes: Path
    pictures: list[Path]
    scores: list[list[float]]
    failures: list[int]
    key_frames: list[KeyFrame] | None


def run(
    glus: GLUS,
    selector: Selector | None,
    frames: FrameSource,
    sentences: Sequence[str],
    settings: Settings,
    folder: Path,
    report: Report,
    *,
    memory_budget: float | None = None,
) -> Outcome:
    """Segment a clip and write everything into `folder`, which exists.

    Args:
        selector: chooses key frames; needed for `settings.key_frames`.
        memory_budget: GiB to use beside each model; default by what is free.

    Raises:
        InputError: a clip or a sentence that the model cannot take.
    """
    chosen = None
    if settings.key_frames:
        if selector is None:
            raise InputError("there is no key-frame selector here; start from the first frame")
        chosen = choose_key_frames(selector, frames, sentences, report, memory_budget)
    result = glus.segment(
        frames,
        sentences,
        key_frames=[key.index for key in chosen] if chosen else None,
        config=replace(glus.config.inference, **settings.inference),
        memory_budget=memory_budget,
        progress=lambda done, total: report("segmenting", done, total),
    )
    return write(result, frames, settings.alpha, chosen, folder, report)


def choose_key_frames(
    selector: Selector,
    frames: FrameSource,
    sentences: Sequence[str],
    report: Report,
    memory_budget: float | None = None,
) -> list[KeyFrame]:
    """The frame the selector scores highest, for each sentence."""
    from glus.inference.budget import MemoryBudget
    from kfs.frame_scores import best_frame, finite
    from kfs.scoring import score_clip

    table = [[math.nan] * len(frames) for _ in sentences]
    budget = MemoryBudget.of_gib(memory_budget) if memory_budget is not None else None
    queries = [Query(text) for text in sentences]
    steps = score_clip(selector.model, selector.tokenizer, frames, queries, budget=budget)
    for done, (row, score) in enumerate(finite(steps, frames.names), start=1):
        if isinstance(score, InputError):
            raise score
        table[row][score.frame] = score.score
        report("choosing key frames", done, len(frames) * len(sentences))
    return [KeyFrame(best_frame(scores), scores) for scores in table]


def write(
    result: SegmentResult,
    frames: FrameSource,
    alpha: float,
    key_frames: list[KeyFrame] | None,
    folder: Path,
    report: Report,
) -> Outcome:
    """Write video, pictures, masks and codes of a result, frame by frame."""
    pictures = folder / "pictures"
    pictures.mkdir()
    paths = [pictures / f"{index:05d}.jpg" for index in range(len(frames))]
    texts = result.expressions
    made = (
        exports.overlay_video(folder / "overlay.mp4", frames, texts, alpha=alpha, captions=True),
        exports.mask_pngs(folder / "masks", frames, len(texts)),
        exports.rle_json(folder / "masks.json", frames, texts, "coco"),
    )
    with ExitStack() as stack:
        puts = [stack.enter_context(export) for export in made]
        for index, path in enumerate(paths):
            report("drawing", index, len(frames))
            masks = result.masks[:, index].numpy()
            for put in puts:
                put(index, masks, result.scores[:, index].tolist())
            write_jpeg(path, overlay(frames[index], masks, alpha=alpha))
    report("packing", 0, 1)
    packed = shutil.make_archive(str(folder / "masks"), "zip", folder / "masks")
    shutil.rmtree(folder / "masks")
    return Outcome(
        texts,
        folder / "overlay.mp4",
        Path(packed),
        folder / "masks.json",
        paths,
        [[round(value, 4) for value in row] for row in result.scores.tolist()],
        [int(count) for count in result.failed.sum(dim=1)],
        key_frames,
    )
