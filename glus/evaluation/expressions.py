"""Score the expressions of a video: J and F (and A and R) of every frame, with every fault of the files listed.

One `VideoJob` is one unit of work for a process. Frames are the outer loop, so that the ground truth of a frame is
decoded once for all expressions that share it and memory does not grow with the length of the video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from operator import or_
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from glus.errors import InputError
from glus.evaluation import metrics
from glus.evaluation.bitmask import BitMask
from glus.evaluation.tracks import PngTrack, RleTrack, Track

Encoding = Literal["binary", "as-published", "as-read"]


@dataclass(frozen=True)
class Expression:
    """One expression to score.

    Attributes:
        annotations: keys of `VideoJob.tracks`; the ground truth is their union, empty when there are none.
        prediction: None when the prediction file does not name the expression.
        place: where the prediction was looked for, for messages.
        group: ReVOS type_id.
    """

    video: str
    exp_id: str
    text: str
    annotations: tuple[str, ...]
    prediction: Track | None
    place: str
    group: int | None = None

    @property
    def name(self) -> str:
        return f"{self.video}/{self.exp_id}"


@dataclass(frozen=True)
class ForegroundSpec:
    """What ReVOS's accuracy and robustness need: everything annotated in the video, and the pixel encoding.

    Attributes:
        encoding: `binary`: masks as 0/1. `as-published`: predicted pixels have the gray value `value`, and the
            uint8 arithmetic of the published tools wraps. `as-read`: the same with the gray values of the files.
    """

    track: RleTrack | None
    encoding: Encoding = "binary"
    value: int = 255


@dataclass(frozen=True)
class VideoJob:
    """The expressions of one video that share a list of frames.

    Attributes:
        size: (height, width) where the data set states it.
        tracks: annotation key -> masks.
        masks_name: the file or folder of the annotations, for messages.
        allow_missing: a missing prediction is an empty mask and counted; otherwise a fault.
        allow_extra: predictions of other frames are ignored; otherwise a fault.
        known_frames: frames that may have predictions without being scored.
    """

    video: str
    frames: tuple[str, ...]
    expressions: tuple[Expression, ...]
    tracks: Mapping[str, Track]
    masks_name: str
    size: tuple[int, int] | None = None
    foreground: ForegroundSpec | None = None
    allow_missing: bool = False
    allow_extra: bool = False
    known_frames: frozenset[str] = frozenset()


@dataclass
class ExpressionScores:
    """Per-frame values (0..1) of one expression, in the order of `frames`; not to be used when there are faults.

    Attributes:
        missing: how many predictions were taken as empty.
        faults: what is wrong with its files, one line each.
        absent: there is no prediction for the whole video.
        video_frames: all frames of the video, scored or not, sorted.
        seen: whether a prediction was there.
        nothing: whether neither the ground truth nor the prediction has a pixel.
    """

    expression: Expression
    frames: tuple[str, ...]
    video_frames: tuple[str, ...] = ()
    region: list[float] = field(default_factory=list)
    boundary: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    robustness: list[float] = field(default_factory=list)
    seen: list[bool] = field(default_factory=list)
    nothing: list[bool] = field(default_factory=list)
    missing: int = 0
    faults: list[str] = field(default_factory=list)
    absent: bool = False


@lru_cache(maxsize=8)
def _empty(height: int, width: int) -> BitMask:
    return BitMask.zeros(height, width)


class _Truth:
    """The ground truth of one frame after the other, decoded once for all expressions."""

    def __init__(self, job: VideoJob) -> None:
        self.job = job
        self.unusable: dict[str, str] = {}
        sizes: Counter[tuple[int, int]] = Counter()
        for key, track in job.tracks.items():
            fault = track.fault(job.frames)
            if fault is not None:
                self.unusable[key] = fault
            elif job.size is None:
                sizes += track.sizes(job.frames)
        # The most frequent size is taken as the video's, so that a single wrong mask is the one that is named.
        self.size = job.size or (sizes.most_common(1)[0][0] if sizes else None)
        self.cache: dict[str | tuple[str, ...], BitMask | InputError] = {}
        self.index, self.frame = 0, ""

    def start(self, index: int, frame: str) -> None:
        self.index, self.frame = index, frame
        self.cache.clear()

    def empty(self) -> BitMask:
        """A mask without foreground; where no mask tells the size, one pixel serves as well."""
        return _empty(*(self.size or (1, 1)))

    def check(self, mask: BitMask | None, where: str) -> BitMask:
        """`mask`, or an empty one for None; InputError when it is not of the video's size."""
        if mask is None:
            return self.empty()
        if self.size is None:
            self.size = mask.shape
        if mask.shape != self.size:
            (h, w), (height, width) = mask.shape, self.size
            raise InputError(f"{where}: mask of {h}x{w}, expected {height}x{width}")
        return mask

    def _decode(self, key: str) -> BitMask:
        if key not in self.job.tracks:
            raise InputError(f"{self.job.masks_name}: no annotation {key}")
        if key in self.unusable:
            raise InputError(self.unusable[key])
        track = self.job.tracks[key]
        where = track.where if isinstance(track, RleTrack) else str(track.folder)
        return self.check(track.mask(self.index, self.frame), f"{where}, frame {self.frame}")

    def single(self, key: str) -> BitMask:
        """The mask of one annotation. The message of an InputError begins with the video."""
        return self._cached(key)

    def union(self, keys: tuple[str, ...]) -> BitMask:
        """The union of several annotations."""
        if not keys:
            return self.empty()
        return self.single(keys[0]) if len(keys) == 1 else self._cached(keys)

    def _cached(self, key: str | tuple[str, ...]) -> BitMask:
        if key not in self.cache:
            try:
                self.cache[key] = self._decode(key) if isinstance(key, str) else reduce(or_, map(self.single, key))
            except InputError as error:
                named = isinstance(key, tuple)  # then a single annotation has put the video's name in front
                self.cache[key] = error if named else InputError(f"{self.job.video}: ground truth: {error}")
        found = self.cache[key]
        if isinstance(found, InputError):
            raise found
        return found


class _Scorer:
    """Scores one expression frame by frame."""

    def __init__(self, job: VideoJob, expression: Expression) -> None:
        self.job = job
        self.expression = expression
        self.faults: dict[str, None] = {}  # an ordered set: one fault may concern every frame
        self.scores = ExpressionScores(expression, job.frames, tuple(sorted(job.known_frames or job.frames)))
        self.gone = self._look()

    def _look(self) -> frozenset[str]:
        """List what is missing or too much before anything is read; returns the names of missing frames."""
        job, track = self.job, self.expression.prediction
        absence = None
        if track is None:
            absence = f"{self.expression.place}: no prediction ({len(job.frames)} frames)"
        elif isinstance(track, PngTrack):
            absence = track.fault(job.frames)
            self.scores.absent = absence is not None and not track.folder.parent.is_dir()
        else:
            fault = track.fault(job.frames)
            if fault is not None:
                self.faults[fault] = None
                return frozenset(job.frames)
        if absence is not None or track is None:
            self._missing([absence or ""], len(job.frames))
            return frozenset(job.frames)
        missing = track.missing(job.frames)
        hint = track.hint if isinstance(track, PngTrack) else lambda name: ""
        self._missing([f"{self.expression.place}/{n}: missing{hint(n)}" for n in missing], len(missing))
        if not job.allow_extra:
            for name in track.extra(job.frames):
                if name not in job.known_frames:
                    self.faults[f"{self.expression.place}/{name}: no frame of that name is scored"] = None
        return frozenset(missing)

    def _missing(self, lines: Sequence[str], count: int) -> None:
        if self.job.allow_missing:
            self.scores.missing += count
        else:
            self.faults.update(dict.fromkeys(lines))

    def frame(self, truth: _Truth) -> None:
        """Score the frame that `truth` is at."""
        gt = pred = None
        try:
            gt = truth.union(self.expression.annotations)
        except InputError as error:
            self.faults[str(error)] = None
        track = self.expression.prediction
        absent = track is None or truth.frame in self.gone
        try:
            mask = None if absent or track is None else track.mask(truth.index, truth.frame)
            pred = truth.check(mask, f"{self.expression.place}/{truth.frame}")
        except InputError as error:
            self.faults[str(error)] = None
        if gt is None or pred is None or self.faults:
            return
        if gt.shape != pred.shape:  # the first mask of a video without any ground truth told the size
            gt = truth.empty()
        region, boundary = metrics.frame_scores(gt, pred)
        self.scores.region.append(region)
        self.scores.boundary.append(boundary)
        self.scores.seen.append(not absent)
        self.scores.nothing.append(region == 1 and not gt.area())
        if self.job.foreground is not None:
            self._robustness(self.job.foreground, truth, gt, pred)

    def _robustness(self, spec: ForegroundSpec, truth: _Truth, gt: BitMask, pred: BitMask) -> None:
        try:
            where = f"foreground of {self.job.video}, frame {truth.frame}"
            if spec.track is None:
                raise InputError(f"{self.job.video}: not in the foreground mask file")
            fault = spec.track.fault(self.job.frames)
            if fault is not None:
                raise InputError(fault)
            foreground = truth.check(spec.track.mask(truth.index, truth.frame), where)
        except InputError as error:
            self.faults[str(error)] = None
            return
        if spec.encoding == "binary":
            accuracy, robustness = metrics.accuracy_robustness(gt, pred, foreground)
        else:
            count = np.zeros(gt.shape, np.uint8)
            for key in self.expression.annotations:
                count += truth.single(key).unpack()
            accuracy, robustness = metrics.accuracy_robustness_of_values(
                count, self._values(spec, truth, pred), foreground
            )
        self.scores.accuracy.append(accuracy)
        self.scores.robustness.append(robustness)

    def _values(self, spec: ForegroundSpec, truth: _Truth, pred: BitMask) -> NDArray[np.uint8]:
        """The prediction as gray values."""
        track = self.expression.prediction
        if spec.encoding == "as-read" and track is not None and truth.frame not in self.gone:
            return track.gray(truth.index, truth.frame)
        return pred.unpack().view(np.uint8) * np.uint8(spec.value)

    def finish(self) -> ExpressionScores:
        self.scores.faults = list(self.faults)
        return self.scores


def score_video(job: VideoJob) -> list[ExpressionScores]:
    """Score all expressions of a video. Bad files do not raise: they are listed in the results."""
    truth = _Truth(job)
    scorers = [_Scorer(job, expression) for expression in job.expressions]
    for index, frame in enumerate(job.frames):
        truth.start(index, frame)
        for scorer in scorers:
            scorer.frame(truth)
    return [scorer.finish() for scorer in scorers]
