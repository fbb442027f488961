"""What visitors send: judged by what it is, never by what it is called, and before anything is decoded whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
from PIL import Image

from glus.errors import InputError
from glus.io import write_bytes
from glus.text.prompts import check_expression
from glus.video import Frame, FrameSource, ImageFrames, VideoFileFrames, natural_key
from glus.video.files import CONTAINERS

IMAGE_KINDS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
WANTED = "send one video (mp4, mov, webm, avi, gif, ...), or images (jpg, png, ...) as its frames"
LEAST_SIDE = 16
MEMORY_BOUND = 256 << 20  # bytes of decoded frames held for a video


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for."""

    megabytes: int = 100
    """of an upload, all files together"""
    frames: int = 300
    """of a video"""
    side: int = 1920
    """pixels of the longer side of a frame"""
    sentences: int = 6
    """of a job"""
    letters: int = 300
    """of a sentence"""
    mask_megabytes: int = 1024
    """of memory for a job's masks: a byte for each frame, pixel and sentence"""
    waiting: int = 16
    """jobs in the queue, one per visitor"""
    idle_minutes: int = 60
    """after which a visitor's files are removed, should the page not tell that it was closed"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"the limit of {name} must be at least 1, found {value}")


@dataclass(frozen=True)
class Upload:
    """A clip that has passed the checks, in a folder of its own, under names of ours.

    Attributes:
        name: what the visitor calls it; to be shown, never to be opened.
        files: one video file, or one image file per frame.
        preview: a picture of the first frame.
    """

    name: str
    files: Sequence[Path]
    images: bool
    frames: int
    width: int
    height: int
    preview: Path

    def open(self) -> FrameSource:
        return _open(self.files, self.images)


def read_upload(sent: Sequence[Path], folder: Path, limits: Limits) -> Upload:
    """Copy what was sent into `folder`, which exists and is empty, and check all of it.

    Raises:
        InputError: no video and no images, damaged, or beyond a limit. The message is for the visitor: it names
            the files as they were sent, and no place on this machine.
    """
    if not sent:
        raise InputError(f"no file was sent; {WANTED}")
    size = sum(path.stat().st_size for path in sent)
    if size > limits.megabytes << 20:
        raise InputError(f"the upload has {size / (1 << 20):.1f} MB, more than {limits.megabytes} MB; shorten it")
    if len(sent) > limits.frames:
        raise InputError(f"{len(sent)} files were sent, but a video may have {limits.frames} frames; send fewer")
    sent = sorted(sent, key=lambda path: (natural_key(path.stem), path.name))
    files = [folder / f"{number:05d}" for number in range(len(sent))]
    names = {file: path.name for file, path in zip(files, sent, strict=True)}
    for file, path in zip(files, sent, strict=True):
        shutil.copyfile(path, file)
    with visitors_words(names):
        images = [_is_image(file, limits) for file in files]
        if not any(images) and len(files) == 1:
            _probe_video(files[0], limits)
        elif not all(images):
            raise InputError(f"{files[images.index(False)]} is not an image; {WANTED}")
        frames = _open(files, all(images))
        for index in range(len(frames)) if all(images) else (0,):  # a video has been decoded by its probe
            frame = frames[index]
    height, width = frame.shape[:2]
    preview = folder / "preview.jpg"
    write_jpeg(preview, frames[0])
    title = sent[0].name + (f" and {len(sent) - 1} more" if len(sent) > 1 else "")
    return Upload(title, files, all(images), len(frames), width, height, preview)


def read_sentences(text: str, limits: Limits) -> list[str]:
    """The sentences of a text, one per line.

    Raises:
        InputError: none, too many, too long, or one that no model can be asked.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError("there is no sentence; write what to segment, one sentence per line")
    if len(lines) > limits.sentences:
        raise InputError(f"there are {len(lines)} sentences, more than {limits.sentences}; write fewer lines")
    for number, line in enumerate(lines, start=1):
        if len(line) > limits.letters:
            raise InputError(f"sentence {number} has {len(line)} letters, more than {limits.letters}; shorten it")
        check_expression(line, f"sentence {number}")
    return lines


def check_work(upload: Upload, sentences: int, limits: Limits, resize: int | None = None) -> None:
    """Refuse what would take more memory than a job may have; `resize` is the longer side that is worked with."""
    scale = min(1.0, (resize or limits.side) / max(upload.width, upload.height))
    megabytes = upload.frames * upload.width * upload.height * scale**2 * sentences / (1 << 20)
    if megabytes > limits.mask_megabytes:
        raise InputError(
            f"{upload.frames} frames of {upload.width}x{upload.height} with {sentences} sentence"
            f"{'s' * (sentences > 1)} are too much at once ({megabytes:.0f} MB of masks, at most "
            f"{limits.mask_megabytes}); choose a smaller side in the options, or write fewer sentences"
        )


def write_jpeg(path: Path, picture: Frame) -> None:
    """Write an RGB picture, uint8 [height, width, 3]."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    write_bytes(path, encoded.tobytes())


@contextmanager
def visitors_words(names: Mapping[Path, str]) -> Iterator[None]:
    """Put the visitor's names in the place of ours in messages."""
    try:
        yield
    except InputError as error:
        text = str(error)
        for path, name in names.items():
            text = text.replace(str(path), name)
        raise InputError(text) from None


def _open(files: Sequence[Path], images: bool) -> FrameSource:
    return ImageFrames(files) if images else VideoFileFrames(files[0], MEMORY_BOUND)


def _is_image(file: Path, limits: Limits) -> bool:
    """Look at the head of a file; an image of a wrong size is refused before its pixels are unpacked."""
    try:
        with Image.open(file, formats=IMAGE_KINDS) as image:
            _check_size(file, image.width, image.height, limits)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{file} has far more pixels than {limits.side}x{limits.side}; make it smaller") from None
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def _check_size(file: Path, width: int, height: int, limits: Limits) -> None:
    if max(width, height) > limits.side:
        raise InputError(
            f"{file} is {width}x{height}; the longer side may have {limits.side} pixels, make it smaller"
        )
    if min(width, height) < LEAST_SIDE:
        raise InputError(f"{file} is {width}x{height}; a side needs {LEAST_SIDE} pixels at least")


def _probe_video(file: Path, limits: Limits) -> None:
    """Decode a video once within the limits, keeping nothing."""
    guards = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    try:
        with av.open(str(file), options=guards) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise InputError(f"{file} has no pictures, only sound; {WANTED}")
            _check_size(file, stream.width, stream.height, limits)
            stream.codec_context.thread_count = 1  # why: see `glus.video.files`
            # the size may change later in the stream
            stream.codec_context.options = {"max_pixels": str(limits.side**2)}
            _count_frames(file, container, stream, limits)
    except (av.error.FFmpegError, OSError):
        raise InputError(
            f"{file} is not a video or an image that can be read, or it is damaged; {WANTED}"
        ) from None


def _count_frames(file: Path, container: Any, stream: Any, limits: Limits) -> None:
    for count, frame in enumerate(container.decode(stream), start=1):
        if (frame.width, frame.height) != (stream.width, stream.height):
            raise InputError(f"{file} changes its size in the middle; re-encode it with one size")
        if count > limits.frames:
            raise InputError(f"{file} has more than {limits.frames} frames; cut out the part you need")
