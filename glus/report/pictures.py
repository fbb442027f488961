"""Pictures of an expression: small ones inside the page, and an overlay video beside it. One frame at a time."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from glus.data.records import Record
from glus.io import disk_errors
from glus.masks import Mask
from glus.overlay import Colour, caption_strip, captioned, overlay
from glus.report.runs import Run, Truth
from glus.video import Frame, ImageFrames, video_writer

THUMBNAIL_WIDTH = 256
VIDEO_WIDTH = 1920
"""Of several runs side by side, at most."""
_WHITE = (255, 255, 255)


def draw(frame: Frame, mask: Mask, truth: Mask | None, colour: Colour) -> Frame:
    """The frame with the predicted mask tinted and the true one as a white outline."""
    picture = overlay(frame, mask, [colour])
    if truth is not None:
        contours, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        # As wide as one pixel of the small picture, or it would vanish there.
        cv2.drawContours(picture, contours, -1, _WHITE, max(1, round(frame.shape[1] / THUMBNAIL_WIDTH)))
    return picture


def _resized(picture: Frame, width: int) -> Frame:
    size = (width, max(1, round(picture.shape[0] * width / picture.shape[1])))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def thumbnail(picture: Frame) -> str:
    """A picture as the `src` of an `<img>`: a small JPEG inside the page."""
    small = cv2.cvtColor(_resized(picture, THUMBNAIL_WIDTH), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def video_name(record: Record) -> str:
    return f"videos/{record.video}/{record.exp_id}.mp4"


def draw_expression(
    record: Record, runs: Sequence[Run], truth: Truth, wanted: set[int], out: Path
) -> dict[int, list[str]]:
    """Write the overlay video of an expression, runs side by side, to `<out>/<video_name>`.

    Args:
        wanted: the frames to return pictures of.

    Returns:
        The `src` of a picture by frame, one for each run.

    Raises:
        InputError: a mask or frame is missing or of another size, or `out` cannot be written.
    """
    frames = ImageFrames([record.frame_path(i) for i in range(len(record))], record.frames)
    width = frames[0].shape[1]
    names: list[str] = []
    if len(runs) > 1:
        names, width = [run.name for run in runs], min(width, VIDEO_WIDTH // len(runs))
    colours = [run.colour for run in runs]
    strip = caption_strip(width * len(runs), [record.text, *names], [_WHITE, *colours] if names else colours)
    path = out / video_name(record)
    with disk_errors(out):
        path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {}
    with video_writer(path, frames.fps) as writer:
        for i in range(len(frames)):
            frame = frames[i]
            true = truth.mask(record, i, frame.shape)
            drawn = [draw(frame, run.predicted(record, i, frame.shape), true, run.colour) for run in runs]
            panels = [picture if width == frame.shape[1] else _resized(picture, width) for picture in drawn]
            writer.write(captioned(np.concatenate(panels, axis=1), strip))
            if i in wanted:
                pictures[i] = [thumbnail(picture) for picture in drawn]
    return pictures
