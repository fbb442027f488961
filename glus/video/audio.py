"""The sound of a video, carried over into another file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from glus.errors import InputError

logger = logging.getLogger(__name__)

COPIED = (
    "aac",
    "mp3",
)  # what browsers play in an mp4, and every container we write takes; else encoded anew as AAC


@dataclass(frozen=True)
class Audio:
    """The main sound track of `path` from `start` to `end` (None: its end), seconds on the file's own clock."""

    path: Path
    start: Fraction = Fraction(0)
    end: Fraction | None = None


def sound_of(container: Any) -> Any:
    """The sound track that FFmpeg holds for the main one, or None where there is none or its codec is unknown."""
    stream = container.streams.best("audio")
    return stream if stream is not None and stream.codec_context is not None else None


class AudioCopy:
    """Writes a sound track into an output container, piece by piece; `close` it."""

    def __init__(self, audio: Audio, output: Any) -> None:
        """Raises an `InputError` where there is no sound to read."""
        self._audio = audio
        try:
            self._input = av.open(str(audio.path), options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"the sound of {audio.path} cannot be read ({error.strerror})") from None
        self._source = sound_of(self._input)
        if self._source is None:
            raise InputError(f"{audio.path} has no sound that can be read")
        copied = self._source.codec_context.codec.canonical_name in COPIED
        if copied:
            self._stream = output.add_stream_from_template(self._source)
        else:
            self._stream = output.add_stream("aac", rate=self._source.codec_context.sample_rate)
            self._stream.codec_context.layout = "mono" if self._source.codec_context.channels == 1 else "stereo"
        self._output = output
        self._packets = self._copied() if copied else self._encoded()
        self._waiting: Any = None

    def until(self, time: Fraction | None) -> None:
        """Write what sounds before `time`, seconds from the start; None: all the rest."""
        try:
            while True:
                self._waiting = self._waiting or next(self._packets, None)
                if self._waiting is None:
                    return
                packet = self._waiting
                if time is not None and packet.pts is not None and packet.pts * packet.time_base >= time:
                    return
                self._waiting = None
                self._output.mux(packet)
        except av.error.FFmpegError as error:
            logger.warning("%s: the sound cannot be read any further (%s)", self._audio.path, error.strerror)
            self._packets = iter(())

    def close(self) -> None:
        self._input.close()

    def _shifted(self, items: Iterator[Any]) -> Iterator[Any]:
        """Packets or frames between start and end, with times counted from the start."""
        start, end = self._audio.start, self._audio.end
        if start > 0:
            self._input.seek(int(start * 1_000_000))
        shift = round(start / self._source.time_base)
        for item in items:
            if item.pts is None:  # the empty packet at the end
                continue
            time = item.pts * self._source.time_base
            if time + (item.duration or 0) * self._source.time_base < start:
                continue
            if end is not None and time >= end:
                return
            item.pts -= shift
            yield item

    def _copied(self) -> Iterator[Any]:
        shift = round(self._audio.start / self._source.time_base)
        for packet in self._shifted(self._input.demux(self._source)):
            packet.dts = packet.pts if packet.dts is None else packet.dts - shift
            packet.stream = self._stream
            yield packet

    def _encoded(self) -> Iterator[Any]:
        at = None
        for frame in self._shifted(self._input.decode(self._source)):
            # Counted in samples: containers round times to milliseconds, which would tear the sound.
            at = round(frame.pts * frame.time_base * frame.sample_rate) if at is None else at
            frame.pts, frame.time_base = at, Fraction(1, frame.sample_rate)
            at += frame.samples
            yield from self._stream.encode(frame)
        yield from self._stream.encode(None)
