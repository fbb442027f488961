"""Validation while training: all frames of held-out videos scored as in real use, against their IoUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glus.data.datasets import load_records
from glus.data.records import check_files
from glus.text.tokenizer import GlusTokenizer
from glus.training.launch import Place, gather
from glus.training.validation import Validation
from glus.video import ImageFrames
from kfs.datasets import Annotated, parse_set
from kfs.evaluation import Choice, measure, summarise
from kfs.model import SelectorModel
from kfs.samples import annotated_videos
from kfs.scoring import score_video


def held_out(name: str, data_dir: str | Path, ious: Path, limit: int) -> list[list[Annotated]]:
    """About `limit` annotated expressions of a data set, on whole videos evenly spread over it.

    Raises:
        InputError: the set, its frames or its IoU files are missing or faulty.
    """
    dataset, split = parse_set(name)
    videos = annotated_videos(load_records(dataset, data_dir, split), ious)
    each = sum(map(len, videos)) / len(videos)
    count = min(len(videos), max(1, round(limit / each)))
    chosen = [videos[i] for i in np.linspace(0, len(videos) - 1, count, dtype=int)]
    check_files(dataset, (video[0].record for video in chosen))  # not hours later
    return chosen


class SelectorValidator:
    """Mean IoU at the chosen frame, and rank correlation, over a held-out list, shared out among the ranks."""

    def __init__(self, videos: Sequence[Sequence[Annotated]], tokenizer: GlusTokenizer) -> None:
        self.videos = videos
        self.tokenizer = tokenizer

    def __call__(self, model: SelectorModel, place: Place) -> Validation:
        """Score all; every rank calls this and gets the same numbers."""
        found: dict[int, list[Choice]] = {}
        for number in range(place.rank, len(self.videos), place.world):
            video = self.videos[number]
            record = video[0].record
            frames = ImageFrames([record.frame_path(i) for i in range(len(record))], record.frames)
            texts = [one.record.text for one in video]
            scores = score_video(model, self.tokenizer, frames, texts)
            found[number] = [measure(row, one.ious) for row, one in zip(scores, video, strict=True)]
        parts: dict[int, list[Choice]] = {}
        for part in gather(place, found):
            parts.update(part)  # type: ignore[call-overload]
        whole = summarise([choice for number in sorted(parts) for choice in parts[number]])
        scalars = {name: getattr(whole, name) for name in ("chosen", "first", "random", "oracle")}
        if whole.rank_correlation is not None:
            scalars["rank_correlation"] = whole.rank_correlation
        return Validation(whole.chosen, scalars)
