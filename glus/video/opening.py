"""From whatever names a video to its frames."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from glus.errors import InputError
from glus.video.files import VideoFileFrames
from glus.video.frames import IMAGE_SUFFIXES, ArrayFrames, FrameSource, ImageFrames, frame_name, natural_key
from glus.video.writing import VIDEO_SUFFIXES

READ_SUFFIXES = (*VIDEO_SUFFIXES, ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp", ".ogv")
"""Names that are taken for videos in a folder of them; a video given by name may have any."""


def _from_folder(folder: Path) -> FrameSource:
    visible = [p for p in folder.iterdir() if not p.name.startswith(".")]
    files = [p for p in visible if p.suffix.lower() in IMAGE_SUFFIXES]
    files = files or [p for p in visible if p.is_file() and cv2.haveImageReader(str(p))]
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    files.sort(key=lambda file: (natural_key(frame_name(file)), file.name))
    return ImageFrames(files)


def open_frames(source: Any, progress: bool = False) -> FrameSource:
    """Open a video.

    Args:
        source: path of a video file, path of a folder of images (in natural order of their names), a list of
            image paths (in the given order), an array uint8 [frames, height, width, 3], or a `FrameSource`,
            which is returned as it is.
        progress: show a bar while a video file is read.

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
        return VideoFileFrames(path, progress=progress)
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
