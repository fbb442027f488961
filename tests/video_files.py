"""Small video files of every kind, written with PyAV: brightness tells the frame."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (34, 48)  # height, width


def picture(index: int, size: tuple[int, int] = SIZE, noise: bool = False) -> np.ndarray:
    """A frame of mean 20 + 20 index (12 of them), its right half brighter by 10; with noise, hard to compress."""
    frame = np.full((*size, 3), 15 + 20 * (index % 12), np.uint8)
    frame[:, size[1] // 2 :] += 10
    if noise:
        frame += np.random.default_rng(index).integers(0, 8, frame.shape, dtype=np.uint8)
    return frame


def write_file(
    path: Path,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = SIZE,
    frames: int = 8,
    rate: int = 10,
    stamps: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    audio: str | None = None,
    noise: bool = False,
) -> Path:
    """Write a video file.

    Args:
        stamps: when each frame is shown, in thousandths of a second; default: evenly.
        audio: codec of a tone of 1000 Hz at 44.1 kHz as long as the video.
    """
    clock = Fraction(1, 1000) if stamps is not None else Fraction(1, rate)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = clock
        stream.options = options or {}
        sound = add_sound(container, audio) if audio else None
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, size, noise), format="rgb24")
            frame = frame.reformat(format=pix_fmt, threads=1)
            frame.pts = stamps[index] if stamps is not None else index
            frame.time_base = clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            put_sound(container, sound, tone(frames / rate if stamps is None else stamps[-1] / 1000, sound.rate))
    return path


def add_sound(container: Any, codec: str) -> Any:
    """A mono stream of 44.1 kHz, 48 for Opus."""
    stream = container.add_stream(codec, rate=48000 if codec == "libopus" else 44100)
    stream.codec_context.layout = "mono"
    return stream


def tone(seconds: float, rate: int) -> np.ndarray:
    return (8000 * np.sin(2 * np.pi * 1000 * np.arange(int(seconds * rate)) / rate)).astype(np.int16)


def put_sound(container: Any, stream: Any, wave: np.ndarray) -> None:
    frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = stream.rate, 0, Fraction(1, stream.rate)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def heard(path: Path) -> tuple[str, np.ndarray]:
    """Codec and samples of a file's sound, float [samples], each where its time stamp says."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        parts = []
        for frame in container.decode(stream):
            start = round(float(frame.pts * frame.time_base) * frame.sample_rate)
            parts.append((start, frame.to_ndarray().astype(np.float64)))
        scale = 32768.0 if parts[0][1].max() > 2 else 1.0
        out = np.zeros(max(start + part.shape[-1] for start, part in parts))
        for start, part in parts:
            out[max(0, start) : start + part.shape[-1]] = part[0][max(0, -start) :] / scale
        return stream.codec_context.codec.canonical_name, out


def decoded_alpha(path: Path) -> np.ndarray:
    """RGBA frames of a WebM with transparency, uint8 [frames, height, width, 4]."""
    frames = []
    with av.open(str(path)) as container:
        context = av.CodecContext.create("libvpx-vp9", "r")  # FFmpeg's own VP9 decoder passes over the alpha
        context.thread_count = 1
        for packet in container.demux(container.streams.video[0]):
            frames += [
                f.to_ndarray(format="rgba", threads=1) for f in context.decode(packet if packet.size else None)
            ]
    return np.stack(frames)
