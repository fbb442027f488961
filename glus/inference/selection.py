"""Which frames the model sees and in what order (reference glus.md 7.2-7.3)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from glus.errors import InputError
from glus.io import expect, field, read_json

ContextChoice = Literal["middle", "linspace"]


def context_frames(n: int, count: int = 4, choice: ContextChoice = "middle") -> list[int]:
    """Indices of the `count` context frames of a clip of `n` frames; they repeat when the clip is short.

    Args:
        choice: "middle" takes an element near the middle of each of `count` equal segments, as the released
            scripts do (C12); "linspace" spreads them from the first to the last frame, as its notebook does.

    Raises:
        ValueError: `n` below 1, `count` below 0, or an unknown choice.
    """
    if n < 1 or count < 0:
        raise ValueError(f"need at least one frame and no less than 0 context frames, got {n} and {count}")
    if count == 0:
        return []
    if choice == "linspace":
        return [int(i) for i in np.linspace(0, n - 1, count, dtype=int)]
    if choice != "middle":
        raise ValueError(f"unknown choice of context frames: {choice!r}")
    borders = np.linspace(0, n, count + 1, dtype=int)
    middle = -(-n // count) // 2
    chosen = np.minimum(borders[:-1] + middle, borders[1:] - 1)
    # an empty first segment gives -1, which the original used as an index: the last frame
    return [int(i) for i in chosen % n]


def passes(n: int, key_frame: int = 0) -> list[list[int]]:
    """Frame indices of each pass in processing order: forward from the key frame, then backward from it.

    The key frame belongs to both passes; the result of the later pass is the one to keep. Memory starts
    empty in each.

    Raises:
        ValueError: the key frame is not a frame of the clip.
    """
    if not 0 <= key_frame < n:
        raise ValueError(f"key frame {key_frame} is not among {n} frames")
    forward = list(range(key_frame, n))
    return [forward] if key_frame == 0 else [forward, list(range(key_frame, -1, -1))]


class KeyFrames:
    """Key frames by (video, expression) from a key-frame selector's JSON.

    Args:
        table: a frame's name or number by `<video>_<expression>`.
        pairs: the same by video and expression, which says it without ambiguity.

    Attributes:
        missing: how often `index` had no entry and answered 0, for the caller to report.
    """

    def __init__(
        self,
        table: Mapping[str, int | str],
        source: str | os.PathLike[str],
        pairs: Mapping[tuple[str, str], int | str] | None = None,
    ) -> None:
        self._table = dict(table)
        self._pairs = dict(pairs or {})
        self._source = Path(source)
        self.missing = 0

    def __len__(self) -> int:
        return len(self._table) + len(self._pairs)

    def index(self, video: str, exp_id: str | int, frames: Sequence[str]) -> int:
        """Position of the key frame in `frames`; 0 where the file says nothing about the expression.

        An entry is a frame name, or a number equal to the integer value of one.

        Raises:
            InputError: the entry names no frame of this video, or more than one.
        """
        key = f"{video}_{exp_id}"
        value = self._pairs.get((video, str(exp_id)), self._table.get(key))
        if value is None:
            self.missing += 1
            return 0
        found = frames_named(value, frames)
        if len(found) != 1:
            fault = "names no frame" if not found else "fits several frames"
            shown = f"{frames[0]} to {frames[-1]}" if frames else "none"
            raise InputError(f"{self._source}: {key} = {value!r} {fault} of video {video} (frames {shown})")
        return found[0]


def load_key_frames(path: str | os.PathLike[str]) -> KeyFrames:
    """Read `{"<video>_<exp_id>": frame name or number}`, or a selector's `{video: {exp_id: {"key_frame": ...}}}`.

    Raises:
        InputError: not such a file; the message names the entry.
    """
    table: dict[str, Any] = expect(read_json(path, "key-frame file"), dict, path, "(top level)")
    flat: dict[str, int | str] = {}
    pairs: dict[tuple[str, str], int | str] = {}
    for key, value in table.items():
        if not isinstance(value, dict):
            flat[key] = expect(value, (int, str), path, key)
            continue
        for exp_id, entry in value.items():
            pairs[key, exp_id] = field(entry, "key_frame", (int, str), path, f"{key}.{exp_id}")
    return KeyFrames(flat, path, pairs)


def frames_named(value: int | str, frames: Sequence[str]) -> list[int]:
    """Positions of the frames that `value` means: the one of that name, else those whose name is that number."""
    if value in frames:
        return [list(frames).index(str(value))]
    number = _as_number(value)
    return [i for i, name in enumerate(frames) if number is not None and _as_number(name) == number]


def _as_number(name: int | str) -> int | None:
    if isinstance(name, int):
        return name
    return int(name) if name.isascii() and name.isdigit() else None
