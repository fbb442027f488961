"""Video files as frames with exact indices, whatever the container says about itself."""

from __future__ import annotations

import bisect
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from tqdm import tqdm

from glus.errors import InputError
from glus.video.audio import Audio, sound_of
from glus.video.frames import DEFAULT_FPS, Frame
from glus.video.selecting import is_regular

logger = logging.getLogger(__name__)

MEMORY_BOUND = 1 << 30  # bytes of decoded frames held for one video file
# Containers that hold nothing but their own video. FFmpeg knows more: playlists that open other files, patterns of
# names, and text drawn as pictures; a file from somewhere else must not reach those.
CONTAINERS = (
    *(
        "mov",
        "mp4",
        "matroska",
        "webm",
        "avi",
        "gif",
        "apng",
        "mpegts",
        "mpeg",
        "mpegvideo",
        "m4v",
        "h264",
        "hevc",
    ),
    *("flv", "asf", "ogg", "ivf", "dv", "mxf", "nut", "wtv", "rm"),
)
_OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
_CLOCK = Fraction(1, 1000)  # the coarsest clock of common containers


class VideoFileFrames:
    """A video file as frames in display order, with exact indices.

    The file is decoded once on opening: containers state frame counts wrongly or not at all. Frames stay in
    memory up to `memory_bound` bytes; a longer video keeps only the time stamps and decodes again from the
    nearest key frame, holding as many frames as the bound allows.

    Attributes:
        names: five-digit indices.
        fps: frames per second; of a variable rate the mean.
        times: seconds from the first frame at which each is shown; None where the rate is constant.
        audio: the file's sound, or None.
    """

    def __init__(
        self, path: str | os.PathLike[str], memory_bound: int = MEMORY_BOUND, progress: bool = False
    ) -> None:
        """Open and scan a file, with a progress bar if wanted.

        Raises:
            InputError: no video file, cut short, damaged, without frames, or of frames of several sizes.
        """
        self._path = Path(path)
        self._bound = memory_bound
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._stamps: list[int] = []
        self._keys: list[int] = []
        self._seekable = True
        self._lock = threading.Lock()
        self.fps = DEFAULT_FPS
        self.times: tuple[Fraction, ...] | None = None
        self.audio: Audio | None = None
        if self._path.exists() and not self._path.is_file():
            raise InputError(f"{self._path} is not a file")
        self._scan(progress)
        self.names = [f"{i:05d}" for i in range(len(self))]

    def __len__(self) -> int:
        return len(self._stamps)

    def __getitem__(self, index: int) -> Frame:
        index = range(len(self))[index]
        with self._lock:
            if index not in self._frames:
                self._decode_around(index)
            return self._frames[index]

    def _scan(self, progress: bool) -> None:
        promised = frame_bytes = 0  # frames; 0: not said
        size = (0, 0)
        clock, rate, has_audio = _CLOCK, None, False
        with tqdm(unit="frame", desc="reading", disable=not progress) as bar:
            for stream, frame in self._decode(start=None):
                if not self._stamps:
                    promised, bar.total = stream.frames, stream.frames or None
                    clock, rate = Fraction(stream.time_base), stream.average_rate or stream.guessed_rate
                    has_audio = sound_of(stream.container) is not None
                    size = (frame.width, frame.height)
                    frame_bytes = _to_rgb(frame).nbytes
                if (frame.width, frame.height) != size:
                    raise InputError(
                        f"{self._path} changes from {size[0]}x{size[1]} to {frame.width}x{frame.height} at frame "
                        f"{len(self)}; re-encode it to one size"
                    )
                if frame.key_frame:
                    self._keys.append(len(self))
                if len(self._frames) == len(self) and (len(self) + 1) * frame_bytes <= self._bound:
                    self._frames[len(self)] = _to_rgb(frame)
                self._stamps.append(-1 if frame.pts is None else frame.pts)
                bar.update()
        if not self._stamps:
            raise InputError(f"{self._path} holds no frames; is the file complete?")
        if len(self) < promised:
            logger.warning("%s: header states %d frames, %d found", self._path, promised, len(self))
        if len(self._frames) < len(self):
            self._frames.clear()
        self._capacity = max(1, self._bound // frame_bytes)
        self._keep_time(clock, rate)
        if has_audio:
            self.audio = Audio(self._path, self._stamps[0] * clock if self._stamped else Fraction(0))

    def _keep_time(self, clock: Fraction, rate: Fraction | None) -> None:
        """Set `fps` and `times` from the time stamps, if these tell time."""
        self._stamped = all(a < b for a, b in pairwise(self._stamps))  # H.264 in AVI has none in display order
        times = tuple((stamp - self._stamps[0]) * clock for stamp in self._stamps)
        if self._stamped and len(self) > 1:
            mean = (len(self) - 1) / times[-1]
            rate = Fraction(rate or mean)
            if not is_regular(times, rate, max(clock, _CLOCK)):
                self.times, rate = times, mean
        self.fps = Fraction(rate or DEFAULT_FPS)

    def _decode_around(self, index: int) -> None:
        """Decode from the key frame at or before `index` up to it, keeping the latest frames in reach."""
        at = bisect.bisect_right(self._keys, index) - 1 if self._stamped else -1
        first = self._keys[at] if at >= 0 else 0
        if at > 0 and self._seekable:
            self._decode_until(index, first, self._stamps[first])
            self._seekable = index in self._frames  # MPEG streams have no index, and may be entered too late
        if index not in self._frames:
            self._decode_until(index, first, None)
        if index not in self._frames:
            raise InputError(f"{self._path}: frame {index} is gone; was the file changed meanwhile?")

    def _decode_until(self, index: int, first: int, start: int | None) -> None:
        """Keep frames from `first` to `index`; see `_decode` for `start`."""
        position = {self._stamps[i]: i for i in range(first, len(self))} if self._stamped else {}
        for count, (_, frame) in enumerate(self._decode(start)):
            i = position.get(frame.pts) if self._stamped else count
            if i is None:  # leading frames of an open group of pictures: shown before the key frame
                continue
            if i > index:
                break
            self._frames[i] = _to_rgb(frame)
            self._frames.move_to_end(i)
            while len(self._frames) > self._capacity:
                self._frames.popitem(last=False)
            if i == index:
                break

    def _decode(self, start: int | None) -> Iterator[tuple[Any, Any]]:
        """Frames in display order, from the key frame with time stamp `start` or from the beginning."""
        try:
            if start is None and _ends_early(self._path):
                raise InputError(f"{self._path} is truncated; copy or download it again")
            with av.open(str(self._path), options=_OPTIONS) as container:
                stream = container.streams.best("video")
                if stream is None:
                    raise InputError(f"{self._path} has no video stream")
                # FFmpeg's threads now and then wait for each other for ever, above all when decoding stops midway
                # (PyAV issues 1849 and 1861; seen here with VP9).
                stream.codec_context.thread_count = 1
                if start is not None:
                    container.seek(start, stream=stream, backward=True, any_frame=False)
                for packet in container.demux(stream):
                    if packet.is_corrupt:
                        raise InputError(f"{self._path} is truncated or damaged; copy or download it again")
                    for frame in packet.decode():
                        yield stream, frame
        except FileNotFoundError:
            raise InputError(f"video not found: {self._path}") from None
        except (av.error.FFmpegError, OSError) as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"{self._path} cannot be decoded as video ({reason}); is it complete, and a video file?"
            ) from None


def _to_rgb(frame: Any) -> Frame:
    """RGB array of a decoded frame, turned upright by the display matrix phones write.

    In one thread: FFmpeg's scaler would start and end some for every frame, and now and then waits for one of them
    for ever (seen with PyAV 18.1 on glibc 2.36).
    """
    rgb = np.asarray(frame.to_ndarray(format="rgb24", threads=1), dtype=np.uint8)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


def _ends_early(path: Path) -> bool:
    """Whether an MP4, Matroska, WebM, AVI or GIF file is shorter than it says, which FFmpeg may pass over."""
    with open(path, "rb") as file:
        head = file.read(4096)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        tail = file.read()
        if head[4:8] == b"ftyp":
            return _boxes_end(file, size) > size
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return int.from_bytes(head[4:8], "little") + 8 > size
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return not tail.rstrip(b"\0\r\n").endswith(b";")
    at = head.find(b"\x18\x53\x80\x67")  # the segment of a Matroska file; its length is a number of 1 to 8 bytes
    if head[:4] != b"\x1a\x45\xdf\xa3" or at < 0 or not head[at + 4]:
        return False
    width = 9 - head[at + 4].bit_length()
    length = int.from_bytes(head[at + 4 : at + 4 + width], "big") & ((1 << 7 * width) - 1)
    unknown = length == (1 << 7 * width) - 1  # a stream that was written without knowing its end
    return not unknown and at + 4 + width + length > size


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last outermost box of an MP4 or QuickTime file of `size` bytes ends by its own word."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:  # a longer number behind the name
            length = int.from_bytes(header[8:], "big")
        if length < 8:  # 0: to the end of the file; less is no box, which FFmpeg judges
            return size
        at += length
    return at
