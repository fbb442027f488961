"""What is drawn for one training sample: a video, expressions about it, frames, and their masks.

Rules of the draw: reference glus.md 4.4. Everything random comes from the generator that is passed in, so a
sample is a pure function of it, whatever rank, worker or run draws it. No torch.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from glus.data.datasets import TRAINING_SPLIT, find_layout, load_records
from glus.data.mask_sources import MaskSource, open_masks
from glus.data.records import Record, check_files
from glus.errors import InputError
from glus.masks import merge_instances
from glus.video import read_image

logger = logging.getLogger(__name__)

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class ClipSample:
    """E expressions about C context and Q query frames of one video.

    Attributes:
        exp_ids, texts: E of each; texts as stored, not yet cleaned.
        context: C frames, uint8 [H, W, 3] RGB.
        query: Q frames of the same size.
        masks: uint8 [E, Q, H, W], 0 and 1 (sums under the original's overlap rule, D16).
        frames: names of the query frames.
    """

    dataset: str
    video: str
    exp_ids: tuple[str, ...]
    texts: tuple[str, ...]
    context: tuple[Frame, ...]
    query: tuple[Frame, ...]
    masks: NDArray[np.uint8]
    frames: tuple[str, ...]


class SampleSource(Protocol):
    """Where samples come from; picklable, because loader workers get a copy."""

    def draw(self, rng: np.random.Generator) -> ClipSample:
        """A sample; everything random comes from `rng`."""
        ...


@dataclass(frozen=True)
class SamplingRules:
    """How a sample is drawn; the defaults are the released recipe's (4.1, 4.4).

    Attributes:
        expressions: most expressions of one sample.
        min_frames: shorter videos are left out; they must have `context_frames` and `query_frames`, too.
        overlap: how the masks of an expression's objects join (`LossRules.overlap`, D16).
    """

    context_frames: int = 4
    query_frames: int = 4
    expressions: int = 3
    min_frames: int = 4
    overlap: Literal["union", "sum"] = "union"

    def __post_init__(self) -> None:
        for name in ("context_frames", "query_frames", "expressions", "min_frames"):
            least = 0 if name == "context_frames" else 1
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if self.overlap not in ("union", "sum"):
            raise InputError(f"overlap must be union or sum, found {self.overlap!r}")

    @property
    def shortest(self) -> int:
        """Frames a video needs."""
        return max(self.min_frames, self.context_frames, self.query_frames)


def parse_mixture(names: str, rates: str) -> list[tuple[str, float]]:
    """Data sets and weights from `--refer_video_seg_data "mevis||refyoutube_vos" --sample_rates "1,1"`.

    Raises:
        InputError: an unknown, repeated or untrainable name (D41); another number of rates than names (D42); a
            rate that is no positive number.
    """
    sets = [name.strip() for name in names.split("||")]
    texts = [text.strip() for text in rates.split(",")]
    for name in sets:
        if find_layout(name).listed:
            raise InputError(f"data set {name} has no masks to train on; take it out of {names!r}")
        if sets.count(name) > 1:
            raise InputError(f"data set {name} is named twice in {names!r}; give it one, larger rate")
    if len(sets) != len(texts):
        raise InputError(
            f"{len(sets)} data sets ({names!r}) but {len(texts)} sample rates ({rates!r}); give one rate per set, "
            'e.g. --refer_video_seg_data "mevis||refyoutube_vos" --sample_rates "1,1"'
        )
    return [(name, _rate(text, rates)) for name, text in zip(sets, texts, strict=True)]


def _rate(text: str, rates: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"sample rate {text!r} in {rates!r} is no positive number")
    return value


def query_indices(rng: np.random.Generator, length: int, count: int) -> list[int]:
    """`count` consecutive frames of a video of `length`, the start uniform."""
    start = int(rng.integers(length - count + 1))
    return list(range(start, start + count))


def context_indices(rng: np.random.Generator, length: int, count: int) -> list[int]:
    """One uniform frame of each of `count` equal segments, ascending; needs `length >= count`."""
    borders = np.linspace(0, length, count + 1, dtype=int)
    return [int(i) for i in rng.integers(borders[:-1], borders[1:])]


@dataclass(frozen=True)
class DataPart:
    """One data set of a mixture.

    Attributes:
        weight: relative to the other parts.
        videos: per video its records, at least one.
        masks: their masks.
    """

    dataset: str
    weight: float
    videos: Sequence[Sequence[Record]]
    masks: MaskSource


def usable_videos(dataset: str, records: Sequence[Record], rules: SamplingRules) -> list[list[Record]]:
    """Records by video, without the videos that are too short; says how many were left out.

    Raises:
        InputError: nothing is left.
    """
    videos: dict[str, list[Record]] = {}
    for record in records:
        videos.setdefault(record.video, []).append(record)
    kept = [video for video in videos.values() if len(video[0]) >= rules.shortest]
    short = [name for name, video in videos.items() if len(video[0]) < rules.shortest]
    if short:
        logger.info(
            "%s: %d of %d videos left out, they have fewer than %d frames: %s%s",
            *(dataset, len(short), len(videos), rules.shortest, ", ".join(short[:5])),
            " ..." if len(short) > 5 else "",
        )
    if not kept:
        raise InputError(
            f"data set {dataset}: none of its {len(videos)} videos with expressions has {rules.shortest} frames; "
            "there is nothing to train on"
        )
    logger.info("%s: %d videos, %d expressions", dataset, len(kept), sum(map(len, kept)))
    return kept


class RecordSource:
    """Samples from data sets on disk.

    Raises:
        InputError: no part, a part without videos, or a weight that is not positive.
    """

    def __init__(self, parts: Sequence[DataPart], rules: SamplingRules | None = None) -> None:
        self.parts = list(parts)
        self.rules = rules or SamplingRules()
        weights = np.array([part.weight for part in self.parts], float)
        empty = [part.dataset for part in self.parts if not part.videos]
        if not len(weights) or empty:
            raise InputError(f"nothing to train on in {', '.join(empty) or 'an empty list of data sets'}")
        if not (np.isfinite(weights) & (weights > 0)).all():
            raise InputError(f"sample rates must be positive numbers, found {weights.tolist()}")
        self._borders = np.cumsum(weights) / weights.sum()

    def draw(self, rng: np.random.Generator) -> ClipSample:
        """A sample by the rules.

        Raises:
            InputError: a frame or mask is missing, damaged or of another size than the others; the message names
                data set, video, frame and file (D17, D18).
        """
        position = int(np.searchsorted(self._borders, rng.random(), side="right"))
        part = self.parts[min(position, len(self.parts) - 1)]
        video = part.videos[int(rng.integers(len(part.videos)))]
        records = self._expressions(rng, video)
        query = query_indices(rng, len(video[0]), self.rules.query_frames)
        context = context_indices(rng, len(video[0]), self.rules.context_frames)
        return self._read(part, records, context, query)

    def _expressions(self, rng: np.random.Generator, video: Sequence[Record]) -> list[Record]:
        """Some without replacement, in the order drawn; all in file order when there are fewer than wanted."""
        if len(video) < self.rules.expressions:
            return list(video)
        chosen = rng.choice(len(video), self.rules.expressions, replace=False)
        return [video[int(i)] for i in chosen]

    def _read(
        self, part: DataPart, records: Sequence[Record], context: Sequence[int], query: Sequence[int]
    ) -> ClipSample:
        first = records[0]
        frames: dict[int, Frame] = {}
        for index in (*query, *context):
            if index not in frames:
                frames[index] = read_frame(first, index)
                _same_size(first, query[0], index, frames)
        height, width = frames[query[0]].shape[:2]
        masks = [
            merge_instances(part.masks.masks(record, query, (height, width)), self.rules.overlap)
            for record in records
        ]
        return ClipSample(
            dataset=part.dataset,
            video=first.video,
            exp_ids=tuple(record.exp_id for record in records),
            texts=tuple(record.text for record in records),
            context=tuple(frames[i] for i in context),
            query=tuple(frames[i] for i in query),
            masks=np.stack(masks),
            frames=tuple(first.frames[i] for i in query),
        )


def read_frame(record: Record, index: int) -> Frame:
    """Frame `index` of a record's video; raises an InputError that names the video, too."""
    try:
        return read_image(record.frame_path(index))
    except InputError as error:
        raise InputError(f"{record.dataset}, video {record.video}: {error}") from None


def _same_size(record: Record, first: int, index: int, frames: dict[int, Frame]) -> None:
    """D18: the original takes the size of whichever frame it read last."""
    (height, width), (wanted_height, wanted_width) = frames[index].shape[:2], frames[first].shape[:2]
    if (height, width) != (wanted_height, wanted_width):
        raise InputError(
            f"{record.dataset}, video {record.video}: {record.frame_path(index)} is {width}x{height}, "
            f"{record.frame_path(first).name} is {wanted_width}x{wanted_height}; all frames must have one size"
        )


def open_records(
    mixture: Sequence[tuple[str, float]],
    data_dir: str | os.PathLike[str],
    rules: SamplingRules | None = None,
    split: str = TRAINING_SPLIT,
) -> RecordSource:
    """The source for a mixture of data sets, e.g. of `parse_mixture`.

    What can be told without decoding is checked for every video that may be drawn, so that a run fails at its
    start rather than hours later: files and folders, fields, which masks there are.

    Raises:
        InputError: a set, a part of it or a file is missing, a fault in a file, or nothing usable in a set.
    """
    rules = rules or SamplingRules()
    parts = []
    for dataset, weight in mixture:
        masks = open_masks(dataset, Path(data_dir), split)
        videos = usable_videos(dataset, load_records(dataset, data_dir, split), rules)
        check_files(dataset, (video[0] for video in videos))
        masks.check([record for video in videos for record in video])
        parts.append(DataPart(dataset, weight, videos, masks))
    return RecordSource(parts, rules)
