"""DAVIS 2017 scores of label maps: the official semi-supervised and unsupervised protocols, and vos-benchmark's.

The three differ only in the fields of `Protocol`. Frames are read one at a time, so memory does not grow with
the length of a sequence. Source: reference evaluation.md 3.6, 3.8 and 5.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt

from glus.errors import InputError
from glus.evaluation.bitmask import BitMask
from glus.evaluation.labels import VOID, LabelMap, frame_names, present_ids
from glus.evaluation.metrics import frame_scores
from glus.evaluation.png import read_labels

Objects = Literal["first-frame", "present", "all"]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """What a protocol scores.

    Attributes:
        objects: which ids are objects. `first-frame`: 1..highest id of the first annotated frame; ids that do
            not occur are empty objects, which score 1 wherever nothing is predicted. `present`: only the ids
            that occur in that frame. `all`: every id of any scored frame, from its first appearance on.
        skip_ends: leave out the first and the last frame.
        ignore_void: leave pixels of value 255 out of the scores; otherwise 255 is background (or, with
            `objects="all"`, an object like any other).
        matching: predicted ids are unordered proposals, matched one to one to the objects.
        max_proposals: highest id allowed with `matching`.
    """

    name: str
    objects: Objects
    skip_ends: bool
    ignore_void: bool = False
    matching: bool = False
    max_proposals: int = 20


SEMI_SUPERVISED = Protocol("semi-supervised", objects="first-frame", skip_ends=True)
UNSUPERVISED = Protocol("unsupervised", objects="first-frame", skip_ends=False, ignore_void=True, matching=True)
VOS_BENCHMARK = Protocol("vos-benchmark", objects="all", skip_ends=True)
PROTOCOLS = {p.name: p for p in (SEMI_SUPERVISED, UNSUPERVISED, VOS_BENCHMARK)}


class LabelSource(Interface):
    """Where the label maps of one sequence come from; must be picklable."""

    def names(self) -> list[str]:
        """Names of the frames there are, in order."""
        ...

    def read(self, name: str, missing: list[str]) -> LabelMap | None:
        """The label map of a frame. What is missing or unreadable is left out and appended to `missing`, one
        line each; None when nothing is left. Raises InputError for anything worse."""
        ...


@dataclass(frozen=True)
class LabelFolder:
    """Label maps in `<folder>/<frame>.png`."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        return frame_names(self.folder)

    def read(self, name: str, missing: list[str]) -> LabelMap | None:
        try:
            return read_labels(self.folder / f"{name}.png")
        except InputError as error:
            missing.append(str(error))
            return None


@dataclass(frozen=True)
class Sequence:
    """One sequence to score.

    Attributes:
        allow_missing: predictions that are missing or unreadable are empty, and counted; otherwise a fault.
        allow_extra: predictions for frames without annotation are ignored; otherwise a fault.
    """

    name: str
    truth: LabelSource
    prediction: LabelSource
    protocol: Protocol
    allow_missing: bool = False
    allow_extra: bool = False


@dataclass(frozen=True)
class ObjectScores:
    """Per-frame J and F (0..1) of one object. `label` is its id in the ground truth, `predicted` the id it is
    compared with, `frames` the names of the frames the values belong to."""

    label: int
    predicted: int
    frames: list[str]
    region: FloatArray
    boundary: FloatArray


@dataclass
class SequenceScores:
    """Result of one sequence.

    Attributes:
        faults: everything that is wrong with its files, one line each.
        missing: predictions that are missing or unreadable, one line each; faults unless they are allowed.
        never_seen: ids below the highest that the first annotated frame lacks; scored as empty objects.
    """

    name: str
    objects: list[ObjectScores] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    never_seen: list[int] = field(default_factory=list)


class _Reader:
    """Reads the frames of one sequence in step and collects what is wrong with them."""

    def __init__(self, sequence: Sequence, result: SequenceScores) -> None:
        self.sequence = sequence
        self.result = result

    def frames(self) -> list[str]:
        """Names of the frames to score."""
        sequence, faults = self.sequence, self.result.faults
        annotated = sequence.truth.names()
        if not annotated:
            faults.append(f"{sequence.name}: no annotated frames in {sequence.truth}")
            return []
        scored = annotated[1:-1] if sequence.protocol.skip_ends else annotated
        if not scored and sequence.protocol.objects != "all":
            faults.append(f"{sequence.name}: has only its first and last frame, which are not scored")
        predicted = sequence.prediction.names()
        if not sequence.allow_extra:
            extra = sorted(set(predicted) - set(annotated))
            faults += [f"{sequence.name}/{name}: predicted, but not an annotated frame" for name in extra]
        if scored and not predicted and not sequence.allow_missing:
            faults.append(f"{sequence.name}: no predictions in {sequence.prediction}")
            return []
        return scored

    def truth(self, name: str) -> LabelMap | None:
        return self.sequence.truth.read(name, self.result.faults)

    def pairs(self, frames: list[str]) -> Iterator[tuple[int, str, LabelMap, LabelMap]]:
        """Index, name, ground truth and prediction of every frame without a fault."""
        for index, name in enumerate(frames):
            maps = self._pair(name)
            if maps is not None:
                yield index, name, *maps

    def _pair(self, name: str) -> tuple[LabelMap, LabelMap] | None:
        """Ground truth and prediction of a frame; None when there is a fault, which is then recorded."""
        truth = self.truth(name)
        missing: list[str] = []
        try:
            prediction = self.sequence.prediction.read(name, missing)
        except InputError as error:
            self.result.faults.append(str(error))
            return None
        self.result.missing += missing
        if truth is None or (missing and not self.sequence.allow_missing):
            return None
        if prediction is None:
            return truth, np.zeros_like(truth)
        if prediction.shape != truth.shape:
            sizes = [f"{h}x{w}" for h, w in (prediction.shape, truth.shape)]
            self.result.faults.append(
                f"{self.sequence.name}/{name}: prediction is {sizes[0]}, ground truth {sizes[1]}"
            )
            return None
        return truth, prediction


def score_sequence(sequence: Sequence) -> SequenceScores:
    """Score one sequence. Bad files do not raise: they are listed in the result, whose `objects` are then not
    to be used."""
    result = SequenceScores(sequence.name)
    reader = _Reader(sequence, result)
    frames = reader.frames()
    if not frames:
        return result
    if sequence.protocol.objects == "all":
        _score_all(reader, frames)
        return result
    first = reader.truth(sequence.truth.names()[0])
    if first is None:
        return result
    ids = [i for i in present_ids(first) if i != VOID]
    if sequence.protocol.objects == "first-frame" and ids:
        present, ids = ids, list(range(1, max(ids) + 1))
        result.never_seen = [i for i in ids if i not in present]
    if sequence.protocol.matching:
        _score_matched(reader, frames, ids)
    else:
        _score_same(reader, frames, ids)
    return result


def _score_same(reader: _Reader, frames: list[str], ids: list[int]) -> None:
    """Semi-supervised: object k against predicted id k; a predicted id above all objects is a fault."""
    result = reader.result
    highest = max(ids, default=0)
    values = np.zeros((len(ids), len(frames), 2))
    for t, name, truth, prediction in reader.pairs(frames):
        if (top := int(prediction.max())) > highest:
            known = f"the highest object of the first frame is {highest}" if ids else "there are no objects"
            result.faults.append(f"{result.name}/{name}: predicted id {top}, but {known}")
            continue
        pairs = zip(BitMask.split(truth, ids), BitMask.split(prediction, ids), strict=True)
        for o, (gt, pred) in enumerate(pairs):
            values[o, t] = frame_scores(gt, pred)
    result.objects = [ObjectScores(i, i, frames, values[o, :, 0], values[o, :, 1]) for o, i in enumerate(ids)]


def _score_matched(reader: _Reader, frames: list[str], ids: list[int]) -> None:
    """Unsupervised: every proposal against every object, then the assignment with the best mean of J and F.

    Objects come in the order of their proposals, as in the official code.
    """
    from scipy.optimize import linear_sum_assignment  # here, because it takes longer to load than all the rest

    result, protocol = reader.result, reader.sequence.protocol
    values = np.zeros((protocol.max_proposals + 1, len(ids), len(frames), 2))  # row 0: an empty proposal
    proposals = len(ids)
    for t, name, truth, prediction in reader.pairs(frames):
        if (top := int(prediction.max())) > protocol.max_proposals:
            result.faults.append(
                f"{result.name}/{name}: predicted id {top}; at most {protocol.max_proposals} proposals are allowed"
            )
            continue
        proposals = max(proposals, top)
        if protocol.ignore_void:
            # Void pixels are taken out of both masks; an object cannot hold any in the ground truth.
            prediction = np.where(truth == VOID, np.uint8(0), prediction)
        objects = BitMask.split(truth, ids)
        empty = BitMask.zeros(*truth.shape)
        values[:, :, t] = [frame_scores(gt, empty) for gt in objects] if objects else 0
        present = present_ids(prediction)
        for p, pred in zip(present, BitMask.split(prediction, present), strict=True):
            for o, gt in enumerate(objects):
                values[p, o, t] = frame_scores(gt, pred)
    mean = values[1 : proposals + 1].mean(axis=2)  # [proposals, objects, 2]
    rows, columns = linear_sum_assignment(-(mean[:, :, 0] + mean[:, :, 1]) / 2)
    result.objects = [
        ObjectScores(ids[o], int(p) + 1, frames, values[p + 1, o, :, 0], values[p + 1, o, :, 1])
        for p, o in zip(rows, columns, strict=True)
    ]


def _score_all(reader: _Reader, frames: list[str]) -> None:
    """vos-benchmark: every id from its first appearance in ground truth or prediction; ids that are never in
    the ground truth are left out."""
    values: dict[int, list[tuple[float, float]]] = {}
    in_truth: set[int] = set()
    for _, _, truth, prediction in reader.pairs(frames):
        annotated = present_ids(truth)
        in_truth.update(annotated)
        ids = sorted(values.keys() | set(annotated) | set(present_ids(prediction)))
        pairs = zip(ids, BitMask.split(truth, ids), BitMask.split(prediction, ids), strict=True)
        for i, gt, pred in pairs:
            values.setdefault(i, []).append(frame_scores(gt, pred))
    for i in sorted(in_truth):
        scores = np.array(values[i])
        reader.result.objects.append(ObjectScores(i, i, frames[-len(scores) :], scores[:, 0], scores[:, 1]))
