"""Frames in and video out: files, folders, lists and arrays behind one `FrameSource`, and an mp4 writer."""

from __future__ import annotations

import bisect
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
import numpy.typing as npt

from glus.errors import InputError
from glus.io import atomic_path, disk_errors

logger = logging.getLogger(__name__)

Frame = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")  # containers written; any FFmpeg knows is read
# Software encoders in order of preference. Hardware encoders are never chosen: a wheel lists them whether or
# not the machine has one. mpeg4 is the last resort (every FFmpeg build has it) and is announced by a warning.
ENCODERS = ("libx264", "libopenh264", "mpeg4")
DEFAULT_FPS = Fraction(6)  # folders and arrays carry no rate; data sets of this field keep about 6 frames/s
MEMORY_BOUND = 1 << 30  # bytes of decoded frames held for one video file
_DECODED_IMAGES = 16  # frames an image folder keeps; a dialog window re-reads the last few


class FrameSource(Protocol):
    """A finite, randomly accessible video; those of this module may be read by several threads."""

    @property
    def names(self) -> list[str]:
        """One name per frame: file stems, or five-digit indices."""
        ...

    @property
    def fps(self) -> Fraction:
        """Frames per second, positive."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame:
        """Frame `index` (0..len-1) as RGB, uint8 [height, width, 3], the same size for every frame."""
        ...


def read_image(path: str | os.PathLike[str]) -> Frame:
    """Decode an image file to RGB, uint8 [height, width, 3] (EXIF orientation applied, as OpenCV does).

    Raises:
        InputError: missing, unreadable, not an image, or cut short. OpenCV itself fills the missing part of
            a truncated JPEG with grey and reports success, hence the look at the end marker.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"image not found: {path}") from None
    except OSError as error:
        raise InputError(f"image {path} cannot be read: {error.strerror}") from None
    # Entropy-coded bytes never contain a bare FF D9 or FF DA, so the last scan must be followed by its end.
    cut_jpeg = data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    cut_png = data[:4] == b"\x89PNG" and b"IEND" not in data[-64:]
    if cut_jpeg or cut_png:
        raise InputError(f"image {path} is truncated (its end is missing); copy or download it again")
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if decoded is None:
        raise InputError(f"image {path} cannot be decoded; it is {'empty' if not data else 'not an image'}")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)


class ImageFrames:
    """Image files as a video, decoded on access; the last few stay in memory."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]], names: Sequence[str] | None = None) -> None:
        self._paths = [Path(p) for p in paths]
        self.names = list(names) if names is not None else [p.stem for p in self._paths]
        self.fps = DEFAULT_FPS
        if not self._paths:
            raise InputError("a video needs at least one frame; the list of frames is empty")
        if len(set(self.names)) != len(self._paths):
            raise InputError(f"{self._paths[0].parent}: frame names are not unique or do not match the files")
        self._recent: OrderedDict[int, Frame] = OrderedDict()
        self._size: tuple[int, ...] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Frame:
        index = range(len(self))[index]  # IndexError out of range, so that iteration ends
        with self._lock:
            return self._get(index)

    def _get(self, index: int) -> Frame:
        if index not in self._recent:
            frame = read_image(self._paths[index])
            self._size = self._size or frame.shape
            if frame.shape != self._size:
                raise InputError(
                    f"{self._paths[index]} is {frame.shape[1]}x{frame.shape[0]}, other frames of this video are "
                    f"{self._size[1]}x{self._size[0]}; all frames must have one size"
                )
            self._recent[index] = frame
            if len(self._recent) > _DECODED_IMAGES:
                self._recent.popitem(last=False)
        self._recent.move_to_end(index)
        return self._recent[index]


class ArrayFrames:
    """An array uint8 [frames, height, width, 3] as a video."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
            raise InputError(
                f"a video array must be uint8 [frames, height, width, 3], found {array.dtype} {list(array.shape)}"
            )
        if 0 in array.shape:
            raise InputError(f"the video array {list(array.shape)} has no frames or no pixels")
        self._array = array
        self.names = [f"{i:05d}" for i in range(len(array))]
        self.fps = DEFAULT_FPS

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> Frame:
        return np.asarray(self._array[range(len(self))[index]], dtype=np.uint8)


class VideoFileFrames:
    """A video file as frames in display order, with exact indices.

    The file is decoded once on opening: containers state frame counts wrongly or not at all. Frames stay in
    memory up to `memory_bound` bytes; a longer video keeps only the time stamps and decodes again from the
    nearest key frame, holding as many frames as the bound allows.
    """

    def __init__(self, path: str | os.PathLike[str], memory_bound: int = MEMORY_BOUND) -> None:
        self._path = Path(path)
        self._bound = memory_bound
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._stamps: list[int] = []
        self._keys: list[int] = []
        self._lock = threading.Lock()
        self.fps = DEFAULT_FPS
        self._scan()
        self.names = [f"{i:05d}" for i in range(len(self))]

    def __len__(self) -> int:
        return len(self._stamps)

    def __getitem__(self, index: int) -> Frame:
        index = range(len(self))[index]
        with self._lock:
            if index not in self._frames:
                self._decode_around(index)
            return self._frames[index]

    def _scan(self) -> None:
        promised = frame_bytes = 0
        for stream, frame in self._decode(start=None):
            if frame.pts is None or (self._stamps and frame.pts <= self._stamps[-1]):
                raise InputError(f"{self._path}: time stamps are missing or out of order; re-encode the file")
            if not self._stamps:
                promised = stream.frames
                self.fps = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
                frame_bytes = _to_rgb(frame).nbytes
            if frame.key_frame:
                self._keys.append(len(self._stamps))
            if len(self._frames) == len(self._stamps) and (len(self._stamps) + 1) * frame_bytes <= self._bound:
                self._frames[len(self._stamps)] = _to_rgb(frame)
            self._stamps.append(frame.pts)
        if not self._stamps:
            raise InputError(f"{self._path} holds no frames; is the file complete?")
        if len(self) < promised:
            logger.warning("%s: header states %d frames, %d found", self._path, promised, len(self))
        if len(self._frames) < len(self):
            self._frames.clear()
        self._capacity = max(1, self._bound // frame_bytes)

    def _decode_around(self, index: int) -> None:
        """Decode from the key frame at or before `index` up to it, keeping the latest frames in reach."""
        at = bisect.bisect_right(self._keys, index) - 1
        first = self._keys[at] if at >= 0 else 0
        position = {self._stamps[i]: i for i in range(first, len(self))}
        for _, frame in self._decode(start=self._stamps[first] if at >= 0 else None):
            i = position.get(frame.pts)
            if i is None:  # leading frames of an open group of pictures: shown before the key frame
                continue
            self._frames[i] = _to_rgb(frame)
            self._frames.move_to_end(i)
            while len(self._frames) > self._capacity:
                self._frames.popitem(last=False)
            if i >= index:
                break
        if index not in self._frames:
            raise InputError(f"{self._path}: frame {index} is gone; was the file changed meanwhile?")

    def _decode(self, start: int | None) -> Iterator[tuple[Any, Any]]:
        """Frames in display order, from the key frame with time stamp `start` or from the beginning."""
        try:
            with av.open(str(self._path)) as container:
                if not container.streams.video:
                    raise InputError(f"{self._path} has no video stream")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
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
    """RGB array of a decoded frame, turned upright by the display matrix phones write."""
    rgb = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts frame10 after frame9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _from_folder(folder: Path) -> FrameSource:
    visible = (p for p in folder.iterdir() if not p.name.startswith("."))
    files: list[Path] = [p for p in visible if p.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    files.sort(key=lambda file: (natural_key(file.stem), file.name))
    return ImageFrames(files)


def open_frames(source: Any) -> FrameSource:
    """Open a video.

    Args:
        source: path of a video file, path of a folder of images (in natural order of their names), a list of
            image paths (in the given order), an array uint8 [frames, height, width, 3], or a `FrameSource`,
            which is returned as it is.

    Raises:
        InputError: nothing there, nothing in it, or not decodable. Defects of single image files show when
            the frame is read.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            return _from_folder(path)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.exists():
            return ImageFrames([path])
        return VideoFileFrames(path)
    if hasattr(source, "__array__"):
        return ArrayFrames(np.asarray(source))
    if isinstance(source, list | tuple) and all(isinstance(p, str | os.PathLike) for p in source):
        return ImageFrames(source)
    if all(hasattr(source, name) for name in ("__len__", "__getitem__", "names", "fps")):
        checked: FrameSource = source
        return checked
    raise InputError(
        f"cannot read frames from a {type(source).__name__}: give a video file, a folder of images, a list of "
        "image paths or a uint8 array [frames, height, width, 3]"
    )


def encoder_name() -> str:
    """The first of `ENCODERS` this PyAV build can write with."""
    for name in ENCODERS:
        if name in av.codecs_available:
            if name == "mpeg4":
                logger.warning("no H.264 encoder in this PyAV build; writing MPEG-4 Part 2 instead")
            return name
    raise InputError(f"this PyAV build has none of the encoders {', '.join(ENCODERS)}; reinstall av from PyPI")


class VideoWriter:
    """Takes the frames of one output file; made by `video_writer`."""

    def __init__(self, container: Any, path: Path, fps: Fraction) -> None:
        self._container = container
        self._path = path
        self._fps = fps
        self._stream: Any = None
        self._shape: tuple[int, ...] = ()

    def write(self, frame: Frame) -> None:
        """Append one frame, RGB uint8 [height, width, 3]; every frame must have the same size."""
        height, width = frame.shape[:2]
        if self._stream is None:
            self._shape = frame.shape
            self._stream = self._container.add_stream(encoder_name(), rate=self._fps)
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.pix_fmt = "yuv420p"
            if self._stream.codec_context.name == "libx264":
                self._stream.options = {"crf": "18", "preset": "veryfast"}
        if frame.shape != self._shape:
            raise InputError(f"{self._path}: frame of shape {list(frame.shape)} after {list(self._shape)}")
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def finish(self) -> None:
        """Flush the encoder."""
        if self._stream is None:
            raise InputError(f"{self._path}: a video needs at least one frame")
        self._container.mux(self._stream.encode())


@contextmanager
def video_writer(path: str | os.PathLike[str], fps: float | Fraction = DEFAULT_FPS) -> Iterator[VideoWriter]:
    """Write RGB frames to a video file, H.264 in yuv420p, atomically.

        with video_writer("out.mp4", fps=6) as writer:
            writer.write(frame)

    Odd sizes are padded by one repeated row or column, since 4:2:0 chroma needs even ones. If the block
    raises, an older file at `path` stays and no new one appears.

    Raises:
        InputError: the file cannot be written (folder missing, no permission, disk full), its suffix names
            no known container, no frame was written, or frames differ in size.
    """
    target = Path(path)
    if target.suffix.lower() not in VIDEO_SUFFIXES:
        raise InputError(f"{target}: the name of an output video must end in one of {', '.join(VIDEO_SUFFIXES)}")
    rate = Fraction(fps).limit_denominator(1001)  # 29.97 comes as a float; containers want small fractions
    if rate <= 0:
        raise InputError(f"frame rate must be positive, found {fps}")
    with disk_errors(target), atomic_path(target) as temporary:
        temporary.touch()  # FFmpeg opens its file only when the first frames are encoded, seconds or minutes later
        with av.open(str(temporary), "w") as container:
            writer = VideoWriter(container, target, rate)
            yield writer
            writer.finish()


def write_video(
    path: str | os.PathLike[str], frames: Iterable[Frame], fps: float | Fraction = DEFAULT_FPS
) -> None:
    """Write all `frames` (RGB, uint8 [height, width, 3]) to `path`; see `video_writer`."""
    with video_writer(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
