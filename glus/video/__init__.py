"""Frames in and video out: files, folders, lists and arrays behind one `FrameSource`, and an mp4 writer."""

from __future__ import annotations

from glus.video.audio import Audio
from glus.video.files import VideoFileFrames
from glus.video.frames import (
    DEFAULT_FPS,
    IMAGE_SUFFIXES,
    ArrayFrames,
    Frame,
    FrameSource,
    ImageFrames,
    natural_key,
    read_image,
)
from glus.video.opening import READ_SUFFIXES, open_frames
from glus.video.selecting import select, times_of
from glus.video.writing import VIDEO_SUFFIXES, VideoWriter, alpha_writer, video_writer, write_video

__all__ = [
    "DEFAULT_FPS",
    "IMAGE_SUFFIXES",
    "READ_SUFFIXES",
    "VIDEO_SUFFIXES",
    "ArrayFrames",
    "Audio",
    "Frame",
    "FrameSource",
    "ImageFrames",
    "VideoFileFrames",
    "VideoWriter",
    "alpha_writer",
    "natural_key",
    "open_frames",
    "read_image",
    "select",
    "times_of",
    "video_writer",
    "write_video",
]
