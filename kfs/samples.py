"""Training samples of the selector: some reference frames of a video, one of them the target, and expressions.

The rules of the draw: reference kfs.md, 5.3. Sample `number` is a pure function of (seed, number), so neither
workers nor ranks nor resuming matter, and the number of reference frames follows the balanced list by the sample's
number (defects 28 and 29).
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from glus.data.datasets import load_records
from glus.data.records import Record, check_files
from glus.data.sampling import Frame, read_frame
from glus.data.transforms import clip_image
from glus.errors import InputError
from glus.evaluation.frame_ious import check_policy
from glus.text.labels import label_conversation
from glus.text.tokenizer import IMAGE_INDEX, GlusTokenizer
from kfs.datasets import Annotated, check_known, parse_set, read_annotations
from kfs.frames import balanced, segment_borders
from kfs.model import SelectorConfig
from kfs.prompts import ANSWERS, check_expression, clean_expression, conversation, questions_for

logger = logging.getLogger(__name__)

LIST_LENGTH = 10_000
"""After so many samples the original's list of frame counts begins again."""
MIN_FRAMES = 2


@dataclass(frozen=True)
class SelectorData:
    """Where samples come from and how they are drawn; the defaults are the original's, but for `normalise_text`.

    Attributes:
        rvos_seg_data: data sets joined by `||`; see `kfs.datasets.parse_set`.
        rvos_sample_ratio: their weights, joined by `||`; default: by their numbers of annotated videos, so that
            every video is as likely.
        iou_path: folder of IoU files for all sets, or one for each, joined by `||`.
        frame_range: fewest and most reference frames of a sample.
        balance_sample: numbers of reference frames follow the original's fixed list, instead of being drawn.
        sample_policy: reference frames lie one in each of equal segments, or anywhere.
        num_classes_per_sample: most expressions of a sample.
        normalise_text: lower-case expressions and join their words by single blanks, as scoring does; the
            original trains on text as it stands (defect 33).
    """

    dataset_dir: str = "data"
    rvos_seg_data: str = "mevis_train||refytvos_train"
    rvos_sample_ratio: str | None = None
    iou_path: str = "ious"
    frame_range: tuple[int, ...] = (8, 12)
    balance_sample: bool = True
    sample_policy: Literal["uniform", "random"] = "uniform"
    num_classes_per_sample: int = 3
    normalise_text: bool = True

    def __post_init__(self) -> None:
        if len(self.frame_range) != 2 or not 1 <= self.frame_range[0] <= self.frame_range[1]:
            raise InputError(f"data.frame_range needs two numbers from 1, the smaller first: {self.frame_range}")
        if self.num_classes_per_sample < 1:
            raise InputError(f"data.num_classes_per_sample must be at least 1: {self.num_classes_per_sample}")


@dataclass(frozen=True)
class AnnotatedSet:
    """One data set of a mixture: per video its annotated expressions, at least one."""

    name: str
    weight: float
    videos: Sequence[Sequence[Annotated]]


@dataclass(frozen=True)
class Draw:
    """What a sample consists of, before anything is read.

    Attributes:
        references: frames, ascending.
        target: one of them.
        expressions: those asked about; each has an IoU at the target.
    """

    name: str
    references: tuple[int, ...]
    target: int
    expressions: tuple[Annotated, ...]


@dataclass(frozen=True)
class SelectorSample:
    """E conversations about the same R reference frames and target of one video.

    Attributes:
        rows, labels: token ids and labels of the E conversations (`label_conversation`).
        pixels: (R, 3, S, S) CLIP input of the reference frames, each once: the target is one of them.
        images: the R + 1 frames that every conversation shows, as positions in `pixels`.
        targets: (E,) the IoUs to be said.
        dataset, video, exp_ids, frames: what it is about; names of the R frames.
    """

    rows: tuple[Sequence[int], ...]
    labels: tuple[Sequence[int], ...]
    pixels: torch.Tensor
    images: tuple[int, ...]
    targets: torch.Tensor
    dataset: str
    video: str
    exp_ids: tuple[str, ...]
    frames: tuple[str, ...]

    def to(self, device: torch.device | str) -> SelectorSample:
        """The sample with its tensors on `device`; pinned ones travel without waiting."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> SelectorSample:
        """Called by a DataLoader with `pin_memory=True`."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> SelectorSample:
        return replace(self, pixels=move(self.pixels), targets=move(self.targets))


@functools.cache
def frame_counts(low: int, high: int) -> tuple[int, ...]:
    """The original's list of numbers of reference frames."""
    choices = itertools.islice(balanced([1] * (high - low + 1)), LIST_LENGTH)
    return tuple(low + choice for choice in choices)


class SelectorSource:
    """Draws samples from annotated data sets.

    Raises:
        InputError: no set, or a weight that is not positive.
    """

    def __init__(self, sets: Sequence[AnnotatedSet], data: SelectorData) -> None:
        self.sets = list(sets)
        self.data = data
        weights = np.array([one.weight for one in self.sets], float)
        if not len(weights) or not (np.isfinite(weights) & (weights > 0)).all():
            raise InputError(f"weights of data sets must be positive numbers, found {weights.tolist()}")
        self._borders = np.cumsum(weights) / weights.sum()

    def draw(self, rng: np.random.Generator, number: int) -> Draw:
        """Sample `number`; everything random comes from `rng`."""
        position = int(np.searchsorted(self._borders, rng.random(), side="right"))
        chosen = self.sets[min(position, len(self.sets) - 1)]
        video = chosen.videos[int(rng.integers(len(chosen.videos)))]
        count = min(self.data.num_classes_per_sample, len(video))
        asked = [video[int(i)] for i in rng.choice(len(video), count, replace=False)]
        references = self._references(rng, number, len(asked[0].record))
        known = [t for t in range(len(asked[0].ious)) if any(one.ious[t] is not None for one in asked)]
        usable = sorted(set(references) & set(known))
        target = int(rng.choice(usable or known))
        if not usable:  # all that were drawn are without an IoU: the nearest makes room
            nearest = min(references, key=lambda frame: abs(frame - target))
            references = sorted({*references, target} - {nearest})
        answered = tuple(one for one in asked if one.ious[target] is not None)
        return Draw(chosen.name, tuple(references), target, answered)

    def _references(self, rng: np.random.Generator, number: int, length: int) -> list[int]:
        low, high = self.data.frame_range
        if self.data.balance_sample:
            count = frame_counts(low, high)[number % LIST_LENGTH]
        else:
            count = int(rng.integers(low, high + 1))
        if length <= count:
            return list(range(length))
        if self.data.sample_policy == "random":
            return sorted(int(i) for i in rng.choice(length, count, replace=False))
        borders = segment_borders(length, count)
        return [int(i) for i in rng.integers(borders[:-1], borders[1:])]


class SelectorSet(Dataset[SelectorSample]):
    """Training samples by number, without end.

    Args:
        seed: of the run, from 0; another seed gives other samples throughout.
    """

    def __init__(
        self, source: SelectorSource, tokenizer: GlusTokenizer, config: SelectorConfig, seed: int
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.config = config
        self.seed = seed

    def __getitem__(self, number: int) -> SelectorSample:
        """Sample `number`, from 0.

        Raises:
            InputError: a frame that cannot be read, or a conversation too long for the model.
        """
        rng = np.random.default_rng([self.seed, number])
        draw = self.source.draw(rng, number)
        record = draw.expressions[0].record
        pairs = [self._row(one.record, len(draw.references), rng) for one in draw.expressions]
        frames: list[Frame] = [read_frame(record, index) for index in draw.references]
        size, view = self.config.vision.image_size, self.config.clip_view
        place = draw.references.index(draw.target)
        return SelectorSample(
            rows=tuple(ids for ids, _ in pairs),
            labels=tuple(labels for _, labels in pairs),
            pixels=torch.stack([clip_image(frame, size, view) for frame in frames]),
            images=(*range(len(frames)), place),
            targets=torch.tensor([one.ious[draw.target] for one in draw.expressions], dtype=torch.float32),
            dataset=draw.name,
            video=record.video,
            exp_ids=tuple(one.record.exp_id for one in draw.expressions),
            frames=tuple(record.frames[index] for index in draw.references),
        )

    def _row(self, record: Record, references: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Ids and labels of one conversation; `rng` draws its templates."""
        said = clean_expression(record.text, training=not self.source.data.normalise_text)
        question, answer = int(rng.integers(len(questions_for(said)))), int(rng.integers(len(ANSWERS)))
        ids, labels = label_conversation(conversation(said, references, question, answer), self.tokenizer)
        length = len(ids) + ids.count(IMAGE_INDEX) * (self.config.merging.tokens_per_image - 1)
        limit = self.config.language.max_positions
        if length > limit:
            raise InputError(
                f"{record.dataset}, video {record.video}, expression {record.exp_id}: the conversation takes "
                f"{length} positions, the model has {limit}; lower data.frame_range"
            )
        return ids, labels


def annotated_videos(records: Sequence[Record], root: Path) -> list[list[Annotated]]:
    """Annotated expressions by video; raises InputError for a text that no selector can be asked for."""
    videos: dict[str, list[Annotated]] = {}
    for one in read_annotations(root, records):
        where = f"{one.record.dataset}, video {one.record.video}, expression {one.record.exp_id}"
        check_expression(one.record.text, where)
        videos.setdefault(one.record.video, []).append(one)
    return list(videos.values())


def open_source(data: SelectorData) -> SelectorSource:
    """The source that `data` describes, checked as far as it can be without decoding a frame.

    Raises:
        InputError: names, weights and folders that do not match; sets, IoU files or frames missing or faulty.
    """
    names = [name.strip() for name in data.rvos_seg_data.split("||")]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"data set {twice} is named twice in {data.rvos_seg_data!r}; give it a larger ratio")
    roots = [Path(root.strip()) for root in data.iou_path.split("||")]
    if len(roots) not in (1, len(names)):
        raise InputError(f"{len(names)} data sets but {len(roots)} folders in data.iou_path {data.iou_path!r}")
    roots = roots * len(names) if len(roots) == 1 else roots
    weights = None if data.rvos_sample_ratio is None else _weights(data.rvos_sample_ratio, len(names))
    sets: list[AnnotatedSet] = []
    known: dict[Path, list[Record]] = {root: [] for root in roots}
    for position, (name, root) in enumerate(zip(names, roots, strict=True)):
        dataset, split = parse_set(name)
        records = load_records(dataset, data.dataset_dir, split)
        known[root] += records
        videos = annotated_videos([record for record in records if len(record) >= MIN_FRAMES], root)
        check_files(dataset, (video[0].record for video in videos))
        policy = check_policy(root) or "not recorded"  # what frames without the object count (defect 21)
        counts = len(videos), sum(map(len, videos))
        logger.info("%s: %d videos, %d annotated expressions, absent objects: %s", name, *counts, policy)
        sets.append(AnnotatedSet(name, len(videos) if weights is None else weights[position], videos))
    for root, records in known.items():
        check_known(root, records)
    return SelectorSource(sets, data)


def _weights(text: str, count: int) -> list[float]:
    parts = text.split("||")
    if len(parts) != count:
        raise InputError(f"{count} data sets but {len(parts)} weights in data.rvos_sample_ratio {text!r}")
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise InputError(f"data.rvos_sample_ratio {text!r}: weights are numbers joined by ||") from None
