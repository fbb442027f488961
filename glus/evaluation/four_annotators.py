"""Ref-DAVIS17 by the four-annotator protocol, the one whose numbers are usually published.

Every object has four expressions, one per annotation set. The masks that one annotator's expressions give are
merged into label maps, these are scored by the unsupervised DAVIS protocol, and the four results are averaged.
Source: reference evaluation.md 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glus.errors import InputError
from glus.evaluation.bitmask import BitMask
from glus.evaluation.davis import UNSUPERVISED, LabelFolder, Sequence
from glus.evaluation.davis_results import Dataset, DavisScores, davis_truth, score_dataset, summarise
from glus.evaluation.expression_files import Predictions, Video, read_videos
from glus.evaluation.labels import LabelMap, merge_objects
from glus.evaluation.tracks import PngTrack, RleTrack, Track

ANNOTATORS = 4


@dataclass(frozen=True)
class MergedExpressions:
    """Label maps merged from the binary masks of several expressions; object k is the k-th of `tracks`.

    Attributes:
        frames: in the order of the expression file, which run-length codes follow.
        tracks: the masks of each expression, and what to call their place; None where there are none.
    """

    frames: tuple[str, ...]
    tracks: tuple[tuple[Track | None, str], ...]

    def __str__(self) -> str:
        return ", ".join(place for _, place in self.tracks)

    def names(self) -> list[str]:
        """Frames that any of the expressions has."""
        names: set[str] = set()
        for track, _ in self.tracks:
            names.update(track.names() if isinstance(track, PngTrack) else self.frames if track else ())
        return sorted(names)

    def read(self, name: str, missing: list[str]) -> LabelMap | None:
        """See `LabelSource`; an expression's mask that is missing leaves its object out of this frame."""
        masks = {}
        for position, (track, place) in enumerate(self.tracks):
            mask = self._mask(track, place, name, missing)
            if mask is not None:
                masks[position] = mask.unpack()
        shapes = sorted({mask.shape for mask in masks.values()})
        if len(shapes) > 1:
            raise InputError(f"{self}: the masks of frame {name} have different sizes: {shapes}")
        if not shapes:
            return None
        empty = np.zeros(shapes[0], np.bool_)
        return merge_objects([masks.get(i, empty) for i in range(len(self.tracks))])

    def _mask(self, track: Track | None, place: str, name: str, missing: list[str]) -> BitMask | None:
        """The mask of one expression; None, and a line in `missing`, when it is not there or unreadable."""
        absence = f"{place}: no masks" if track is None else track.fault(self.frames)
        if absence is not None and isinstance(track, RleTrack):
            raise InputError(absence)
        mask = None
        try:
            if track is not None and absence is None:
                mask = track.mask(self.frames.index(name), name)
        except InputError as error:
            absence = str(error)
        if mask is None:
            missing.append(absence or f"{place}, frame {name}: missing")
        return mask


@dataclass(frozen=True)
class FourAnnotatorScores:
    """One result per annotator; `totals` are their means."""

    annotators: list[DavisScores]

    @property
    def totals(self) -> dict[str, float]:
        """The columns of the official global CSV, fractions 0..1."""
        columns = [scores.totals for scores in self.annotators]
        return {name: float(np.mean([c[name] for c in columns])) for name in columns[0]}

    @property
    def missing(self) -> int:
        """Masks that were missing and counted as empty."""
        return sum(scores.missing for scores in self.annotators)

    def as_json(self) -> dict[str, Any]:
        """Means over the annotators and every annotator's own result, unrounded."""
        totals = self.totals
        return {
            "protocol": "four-annotators",
            "J": totals["J-Mean"],
            "F": totals["F-Mean"],
            "J&F": totals["J&F-Mean"],
            **totals,
            "missing": self.missing,
            "annotators": {f"anno_{a}": scores.as_json() for a, scores in enumerate(self.annotators)},
        }


def annotator_expressions(path: Path, video: Video) -> list[tuple[str, ...]]:
    """Expression ids of each annotator, in the order of the objects.

    Ids count object-major: `id = object * 4 + annotator`.

    Raises:
        InputError: the ids are not 0..4n-1, or four expressions that belong to one object name different ones.
    """
    fields = {entry.exp_id: entry.fields for entry in video.entries}
    ids = [str(i) for i in range(len(fields))]
    if not ids or len(ids) % ANNOTATORS or set(ids) != set(fields):
        raise InputError(
            f"{path}: {video.where}.expressions must have the ids 0 to 4n-1 (n objects, four annotators each), "
            f"found {len(ids)}: {', '.join(list(fields)[:8])}"
        )
    for first in range(0, len(ids), ANNOTATORS):
        objects = {str(fields[i].get("obj_id")) for i in ids[first : first + ANNOTATORS]}
        if len(objects) > 1:
            raise InputError(
                f"{path}: {video.where}.expressions {first} to {first + 3} must be about one object, "
                f"their obj_id are {', '.join(sorted(objects))}"
            )
    return [tuple(ids[annotator::ANNOTATORS]) for annotator in range(ANNOTATORS)]


def annotator_datasets(
    davis_path: Path,
    expression_file: Path,
    predictions: Predictions,
    gt_set: str = "val",
    allow_missing: bool = False,
    allow_extra: bool = False,
) -> list[Dataset]:
    """Per annotator, the sequences with merged predictions.

    Args:
        davis_path: root of a DAVIS 2017 tree with `Annotations_unsupervised`.
        expression_file: `meta_expressions.json` of Ref-DAVIS17.

    Raises:
        InputError: a fault in the tree or in the expression file.
    """
    truth, names = davis_truth(davis_path, gt_set, "unsupervised")
    videos = {video.name: video for video in read_videos(expression_file)}
    faults = [f"{expression_file}: sequence {n} of the set is not in it" for n in names if n not in videos]
    faults += [f"{expression_file}: video {v} is not in the set {gt_set}" for v in videos if v not in names]
    merged: list[list[Sequence]] = [[] for _ in range(ANNOTATORS)]
    for name in names:
        video = videos.get(name)
        if video is None:
            continue
        sources = [
            MergedExpressions(video.frames, tuple(predictions.find(name, i) for i in ids))
            for ids in annotator_expressions(expression_file, video)
        ]
        annotated = LabelFolder(truth / name)
        if sorted(video.frames) != annotated.names():
            faults.append(f"{expression_file}: {video.where}.frames are not the annotated ones in {annotated}")
            continue
        for sequences, source in zip(merged, sources, strict=True):
            sequences.append(Sequence(name, annotated, source, UNSUPERVISED, allow_missing, allow_extra))
    if not allow_extra:
        faults += predictions.surplus()
    return [Dataset(sequences, faults if a == 0 else []) for a, sequences in enumerate(merged)]


def evaluate_four_annotators(
    datasets: list[Dataset], workers: int | None = None, uint8_decay: bool = False
) -> FourAnnotatorScores:
    """Score every annotator's sequences in one pool and summarise them apart.

    Raises:
        InputError: as `score_dataset` and `summarise`.
    """
    together = Dataset([s for d in datasets for s in d.sequences], [f for d in datasets for f in d.faults])
    results = iter(score_dataset(together, workers, "Ref-DAVIS17"))
    parts = [[next(results) for _ in d.sequences] for d in datasets]
    return FourAnnotatorScores([summarise(UNSUPERVISED, part, uint8_decay) for part in parts])
