"""A worker process with a stand-in for the model: masks are a fixed function of pixels and expression.

GLUS_FAKE_SECONDS slows every frame down; an expression saying "crash" ends the process as the kernel would, one
saying "unseen" fails on every third frame.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from glus.errors import InputError
from glus.inference import worker
from glus.inference.queries import Query
from glus.inference.selection import passes
from glus.video import FrameSource


class Result(NamedTuple):
    frame: int
    pass_id: int
    failed: bool
    mask: np.ndarray
    score: float


def segment(frames: FrameSource, queries: Sequence[Query]) -> Iterator[tuple[int, Result]]:
    """Frame by frame, all expressions of each, as the engine does."""
    walks = [walk(frames, query.expression, query.key_frame) for query in queries]
    for results in itertools.zip_longest(*walks):
        yield from ((row, result) for row, result in enumerate(results) if result is not None)


def walk(frames: FrameSource, text: str, key_frame: int) -> Iterator[Result]:
    pause = float(os.environ.get("GLUS_FAKE_SECONDS", "0"))
    level = zlib.crc32(text.encode()) % 200
    for pass_id, order in enumerate(passes(len(frames), key_frame)):
        for i in order:
            time.sleep(pause)
            if "crash" in text and i == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            mask = frames[i][..., 0] > level - pass_id
            yield Result(i, pass_id, "unseen" in text and i % 3 == 0, mask, 0.5)


def load(settings: dict[str, Any]) -> worker.Segmenter:
    sys.stdout.write("a library that prints\n")
    if settings["version"] == "broken":
        raise InputError("checkpoint broken cannot be loaded")
    return segment


if __name__ == "__main__":
    sys.exit(worker.main(load))
