"""What a video is to the rest of the package (`FrameSource`); image files and arrays as one."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from glus.errors import InputError

Frame = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
DEFAULT_FPS = Fraction(6)  # folders and arrays carry no rate; data sets of this field keep about 6 frames/s
_DECODED_IMAGES = 16  # frames an image folder keeps; a dialog window re-reads the last few


class FrameSource(Protocol):
    """A finite, randomly accessible video; those of this package may be read by several threads.

    Two more attributes are optional: `times`, when each frame is shown (`glus.video.times_of`), and `audio`, the
    sound that belongs to it (`glus.video.Audio`).
    """

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
        self.names = list(names) if names is not None else [frame_name(p) for p in self._paths]
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


def frame_name(path: Path) -> str:
    """The stem of an image file; the whole name where what follows the last dot is no suffix (`frame.0001`)."""
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts frame10 after frame9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
