"""Context frames of a stream whose end nobody knows.

A video's context frames come from all over it (7.2). A stream has only a past, so one of these stands in:

- `reservoir` (default): a running sample of the frames so far, each as likely as any other, in order of time. It
  spreads over the stream as the context frames of a file do, changes less and less often (about C ln T times in T
  frames), and holds C frames. The draw is seeded: the same stream gives the same masks.
- `first`: the first C frames. What comes later is never part of the context; nothing is computed anew.
- given frames: C images, for example from an earlier part of the recording.

Until C frames have been seen, those seen so far are repeated, as in a short clip.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from glus.errors import InputError
from glus.video import Frame

ContextPolicy = Literal["reservoir", "first"]


class RunningContext:
    """The context tokens of a stream, frame by frame.

    Args:
        count: context frames.
    """

    def __init__(self, count: int, policy: ContextPolicy, seed: int = 0) -> None:
        if policy not in ("reservoir", "first"):
            raise InputError(f"unknown context policy {policy!r}; choose reservoir or first, or give the frames")
        self._count = count
        self._replaces = policy == "reservoir"
        self._dice = random.Random(seed)
        self._seen = 0
        self._held: list[torch.Tensor] = []

    def offer(self, tokens: torch.Tensor) -> bool:
        """Take note of the next frame's tokens (tokens_per_image, H); whether the context has changed."""
        self._seen += 1
        if len(self._held) < self._count:
            self._held.append(tokens.clone())  # of its batch, no more than itself is kept
            return True
        place = self._dice.randrange(self._seen) if self._replaces else self._count
        if place >= self._count:
            return False
        del self._held[place]
        self._held.append(tokens.clone())
        return True

    def tokens(self) -> torch.Tensor:
        """(count, tokens_per_image, H), in order of time."""
        shown = [self._held[i * len(self._held) // self._count] for i in range(self._count)]
        return torch.stack(shown)


def checked(frames: Iterable[Any]) -> Iterator[Frame]:
    """The frames of a stream; raises an `InputError` for what is no frame, or has another size than the first."""
    size: tuple[int, ...] | None = None
    for index, frame in enumerate(frames):
        good = (
            isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
        )
        if not good or 0 in frame.shape:
            found = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise InputError(f"frame {index} of the stream must be uint8 [height, width, 3], found {found}")
        size = size or frame.shape
        if frame.shape != size:
            raise InputError(
                f"frame {index} of the stream is {frame.shape[1]}x{frame.shape[0]}, others are "
                f"{size[1]}x{size[0]}; all frames must have one size"
            )
        yield frame


def given(frames: Sequence[Any], count: int) -> list[Frame]:
    """Context frames from the caller; raises an `InputError` unless there are `count`."""
    if len(frames) != count:
        raise InputError(f"{len(frames)} context frames were given; the model is asked with {count}")
    return list(checked(frames))
