"""Fewer or smaller frames of a video, and the times at which frames are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import cv2
import numpy as np

from glus.errors import InputError
from glus.video.audio import Audio
from glus.video.frames import Frame, FrameSource


def times_of(source: FrameSource) -> tuple[Fraction, ...] | None:
    """Seconds from the first frame at which each frame is shown; None where `fps` says all."""
    times: tuple[Fraction, ...] | None = getattr(source, "times", None)
    return times


def is_regular(times: Sequence[Fraction], rate: Fraction, tolerance: Fraction = Fraction(0)) -> bool:
    """Whether frames at these times, the first at 0, are `rate` per second, each within `tolerance` seconds."""
    return all(abs(time - index / rate) <= tolerance for index, time in enumerate(times))


class SelectedFrames:
    """Some frames of another source, perhaps smaller; their names, times and sound stay what they were."""

    def __init__(self, source: FrameSource, indices: Sequence[int], shape: tuple[int, int] | None) -> None:
        """Args:
        indices: of `source`, ascending, at least one.
        shape: height and width of the frames; None for those of `source`.
        """
        self._source = source
        self._indices = list(indices)
        self._shape = shape
        self.names = [source.names[i] for i in indices]
        self.fps = source.fps
        self.times: tuple[Fraction, ...] | None = None
        everything = shown_at(source)
        begin, end = everything[indices[0]], everything[indices[-1] + 1]
        if len(indices) > 1:
            times = tuple(everything[i] - begin for i in indices)
            step = Fraction(times[1])
            self.fps = 1 / step
            if not is_regular(times, self.fps):
                self.times, self.fps = times, (len(times) - 1) / times[-1]
        audio: Audio | None = getattr(source, "audio", None)
        if audio is not None:
            last = indices[-1] == len(source) - 1  # sound that goes on behind the last frame stays, too
            audio = replace(audio, start=audio.start + begin, end=audio.end if last else audio.start + end)
        self.audio = audio

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Frame:
        frame = self._source[self._indices[index]]
        if self._shape is None:
            return frame
        return np.asarray(cv2.resize(frame, self._shape[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)


def shown_at(source: FrameSource) -> list[Fraction]:
    """Seconds at which each frame appears and, one more, at which the last one goes."""
    times = times_of(source)
    if times is None:
        return [i / Fraction(source.fps) for i in range(len(source) + 1)]
    return [*times, times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1 / Fraction(source.fps))]


def select(
    source: FrameSource,
    *,
    start: float | Fraction | None = None,
    end: float | Fraction | None = None,
    fps: float | Fraction | None = None,
    max_frames: int | None = None,
    resize: int | None = None,
) -> FrameSource:
    """Choose frames of a video, in this order of the options; without any, `source` itself.

    Args:
        start, end: seconds; frames shown in [start, end) stay.
        fps: at most so many frames per second; of a variable rate, too.
        max_frames: at most so many frames, evenly spread.
        resize: longest side in pixels; a smaller video stays as it is.

    Raises:
        InputError: an option out of range, or no frame is left.
    """
    for name, value in {"fps": fps, "max_frames": max_frames, "resize": resize}.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} must be a number above 0, found {value}")
    for name, value in {"start": start, "end": end}.items():
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"{name} must be seconds from 0 on, found {value}")
    times = shown_at(source)[:-1]
    begin, until = _exact(start or 0), None if end is None else _exact(end)
    kept = [i for i, t in enumerate(times) if t >= begin and (until is None or t < until)]
    if not kept:
        asked = f"{float(begin):g} to {'the end' if until is None else f'{float(until):g}'}"
        raise InputError(f"no frame between second {asked}: the last frame is shown at {float(times[-1]):.3f} s")
    if fps is not None:
        # A frame belongs to the slot of 1/fps seconds it begins in; a quarter of a slot early is still in time,
        # so that 29.97 keeps every frame of 30000/1001.
        slots = [int((times[i] - times[kept[0]]) * _exact(fps) + Fraction(1, 4)) for i in kept]
        kept = [
            kept[0],
            *(i for i, (before, slot) in zip(kept[1:], pairwise(slots), strict=True) if slot > before),
        ]
    if max_frames is not None and len(kept) > max_frames:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, max_frames).round().astype(int)]
    height, width = source[kept[0]].shape[:2] if resize is not None else (0, 0)
    scale = (resize or 0) / max(height, width, 1)
    shape = (max(1, round(height * scale)), max(1, round(width * scale))) if 0 < scale < 1 else None
    if shape is None and len(kept) == len(source):
        return source
    return SelectedFrames(source, kept, shape)


def _exact(number: float | Fraction) -> Fraction:
    """What was meant: 0.4 as a float is a little more than the time of a frame at 0.4 s."""
    return Fraction(number).limit_denominator(1_000_000)
