"""Frames into video files: H.264 that browsers play, with the times and sound of the source; VP9 with alpha."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace

from glus.errors import InputError
from glus.io import atomic_path, disk_errors
from glus.video.audio import Audio, AudioCopy
from glus.video.frames import DEFAULT_FPS, Frame

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")  # containers written
# Software encoders in order of preference. Hardware encoders are never chosen: a wheel lists them whether or
# not the machine has one. mpeg4 is the last resort (every FFmpeg build has it) and is announced by a warning.
ENCODERS = ("libx264", "libopenh264", "mpeg4")
ALPHA_ENCODER = "libvpx-vp9"  # the one pair of codec and container with transparency that browsers play
_OPTIONS = {
    "libx264": {"crf": "18", "preset": "veryfast"},
    ALPHA_ENCODER: {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "5", "auto-alt-ref": "0"},
}
_CLOCK = Fraction(1, 90000)  # of videos with a variable rate
_BT709, _LIMITED = 1, 1  # by their numbers in ITU-T H.273 and in FFmpeg


def encoder_name() -> str:
    """The first of `ENCODERS` this PyAV build can write with."""
    for name in ENCODERS:
        if name in av.codecs_available:
            if name == "mpeg4":
                logger.warning("no H.264 encoder in this PyAV build; writing MPEG-4 Part 2 instead")
            return name
    raise InputError(f"this PyAV build has none of the encoders {', '.join(ENCODERS)}; reinstall av from PyPI")


class VideoWriter:
    """Takes the frames of one output file; made by `video_writer` and `alpha_writer`."""

    def __init__(
        self,
        container: Any,
        path: Path,
        fps: Fraction,
        times: Sequence[Fraction] | None = None,
        audio: Audio | None = None,
        alpha: bool = False,
    ) -> None:
        self._container = container
        self._path = path
        self._fps = fps
        self._times = times
        self._audio = audio
        self._sound: AudioCopy | None = None
        self._alpha = alpha
        self._clock = _CLOCK if times is not None else 1 / fps
        self._stream: Any = None
        self._shape: tuple[int, ...] = ()
        self._count = 0
        self._durations: dict[int, int] = {}

    def write(self, frame: Frame) -> None:
        """Append one frame, uint8 [height, width, 3] RGB (4, RGBA, with `alpha_writer`), all of one size."""
        if self._stream is None:
            self._start(frame)
        if frame.shape != self._shape:
            raise InputError(f"{self._path}: frame of shape {list(frame.shape)} after {list(self._shape)}")
        picture = self._picture(frame)
        picture.time_base = self._clock
        picture.pts = self._tick(self._count)
        self._durations[picture.pts] = self._tick(self._count + 1) - picture.pts
        self._count += 1
        if self._sound is not None:
            self._sound.until(picture.pts * self._clock)
        self._mux(self._stream.encode(picture))

    def _tick(self, index: int) -> int:
        """When frame `index` is shown; the one behind the last stands for its end."""
        if self._times is None or len(self._times) < 2:
            return index if self._times is None else round(index / self._fps / self._clock)
        if index < len(self._times):
            return round(self._times[index] / self._clock)
        return round((2 * self._times[-1] - self._times[-2]) / self._clock)

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts, packet.duration)  # encoders say the mean
            self._container.mux(packet)

    def finish(self) -> None:
        """Flush the encoder and what is left of the sound."""
        if self._stream is None:
            raise InputError(f"{self._path}: a video needs at least one frame")
        self._mux(self._stream.encode())
        if self._sound is not None:
            self._sound.until(None)

    def close(self) -> None:
        """Let go of the file the sound came from."""
        if self._sound is not None:
            self._sound.close()

    def _start(self, frame: Frame) -> None:
        height, width = frame.shape[:2]
        self._shape = (height, width, 4 if self._alpha else 3)
        if frame.shape != self._shape:
            raise InputError(f"{self._path}: frame of shape {list(frame.shape)}, wanted {list(self._shape)}")
        name = ALPHA_ENCODER if self._alpha else encoder_name()
        stream = self._stream = self._container.add_stream(name, rate=self._fps)
        # Frames out of order and of uneven length make mp4 files that state too short a duration.
        stream.options = _OPTIONS.get(name, {}) | ({} if self._times is None or self._alpha else {"bf": "0"})
        if self._alpha:
            stream.width, stream.height, stream.pix_fmt = width, height, "yuva420p"
        else:
            stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            if height % 2 or width % 2:
                size = f"{stream.width}x{stream.height}"
                logger.info("%s: %dx%d is padded to %s, H.264 needs even sides", self._path, width, height, size)
        context = stream.codec_context
        context.time_base = stream.time_base = self._clock
        context.colorspace = context.color_primaries = context.color_trc = _BT709  # else players guess by the size
        context.color_range = _LIMITED
        if self._audio is not None:
            self._sound = AudioCopy(self._audio, self._container)

    def _picture(self, frame: Frame) -> Any:
        height, width = frame.shape[:2]
        if self._alpha:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgba")
        else:
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(even, format="rgb24")
        return picture.reformat(format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709, threads=1)


@contextmanager
def video_writer(
    path: str | os.PathLike[str],
    fps: float | Fraction = DEFAULT_FPS,
    times: Sequence[Fraction] | None = None,
    audio: Audio | None = None,
) -> Iterator[VideoWriter]:
    """Write RGB frames to a video file, H.264 in yuv420p, atomically.

        with video_writer("out.mp4", fps=6) as writer:
            writer.write(frame)

    Odd sizes are padded by one repeated row or column, since 4:2:0 chroma needs even ones; a log line says so. If
    the block raises, an older file at `path` stays and no new one appears.

    Args:
        fps: frames per second.
        times: seconds at which each frame is shown, ascending from 0, for a variable rate.
        audio: sound to put under it; AAC and MP3 are copied, others encoded as AAC.

    Raises:
        InputError: the file cannot be written (folder missing, no permission, disk full), its suffix names
            no known container, no frame was written, or frames differ in size.
    """
    target = Path(path)
    if target.suffix.lower() not in VIDEO_SUFFIXES:
        raise InputError(f"{target}: the name of an output video must end in one of {', '.join(VIDEO_SUFFIXES)}")
    # The index in front: browsers begin to play before the end is there.
    options = {} if target.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
    with (
        _container(target, fps, options) as (container, rate),
        closing(VideoWriter(container, target, rate, times, audio)) as writer,
    ):
        yield writer
        writer.finish()


@contextmanager
def alpha_writer(
    path: str | os.PathLike[str],
    fps: float | Fraction = DEFAULT_FPS,
    times: Sequence[Fraction] | None = None,
) -> Iterator[VideoWriter]:
    """Write RGBA frames, uint8 [height, width, 4], to a `.webm` with transparency (VP9), of any size, atomically.

    Raises:
        InputError: as `video_writer`; this PyAV build has no VP9 encoder.
    """
    target = Path(path)
    if target.suffix.lower() != ".webm":
        raise InputError(f"{target}: the name of a video with transparency must end in .webm")
    if ALPHA_ENCODER not in av.codecs_available:
        raise InputError(f"this PyAV build has no encoder {ALPHA_ENCODER}; reinstall av from PyPI")
    with _container(target, fps, {}) as (container, rate):
        writer = VideoWriter(container, target, rate, times, alpha=True)
        yield writer
        writer.finish()


@contextmanager
def _container(target: Path, fps: float | Fraction, options: dict[str, str]) -> Iterator[tuple[Any, Fraction]]:
    """An output container that appears as `target` when the block ends, and the frame rate as it will stand."""
    rate = Fraction(fps).limit_denominator(1001)  # 29.97 comes as a float; containers want small fractions
    if rate <= 0:
        raise InputError(f"frame rate must be positive, found {fps}")
    with disk_errors(target), atomic_path(target) as temporary:
        temporary.touch()  # FFmpeg opens its file only when the first frames are encoded, seconds or minutes later
        with av.open(str(temporary), "w", options=options) as container:
            yield container, rate


def write_video(
    path: str | os.PathLike[str], frames: Iterable[Frame], fps: float | Fraction = DEFAULT_FPS
) -> None:
    """Write all `frames` (RGB, uint8 [height, width, 3]) to `path`; see `video_writer`."""
    with video_writer(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
