"""`python -m kfs score` with a stand-in for the model: scores are a fixed function of frame and expression.

GLUS_FAKE_SECONDS slows every frame down; an expression saying "broken" gives NaN on its third frame.
"""

from __future__ import annotations

import math
import os
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from glus.__main__ import guarded
from glus.inference.queries import Query
from glus.inference.worker import Segmenter
from glus.inference.worker import main as work
from glus.video import FrameSource
from kfs import score_command
from kfs.frame_scores import FrameScore, finite
from kfs.worker import ScoreStore


def scores(frames: FrameSource, queries: Sequence[Query]) -> Iterator[tuple[int, FrameScore]]:
    for frame in range(len(frames)):
        time.sleep(float(os.environ.get("GLUS_FAKE_SECONDS", "0")))
        level = int(frames[frame].sum()) % 1000 / 999
        for row, query in enumerate(queries):
            broken = "broken" in query.expression and frame == 2
            yield (
                row,
                FrameScore(frame, math.nan if broken else level + zlib.crc32(query.expression.encode()) / 7e9),
            )


def load(_: dict[str, Any]) -> Segmenter:
    return lambda frames, queries: finite(scores(frames, queries), frames.names)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        sys.exit(work(load, ScoreStore))
    command = partial(score_command.main, worker_command=(sys.executable, __file__, "--worker"))
    sys.exit(guarded(command, sys.argv[1:]))
