"""What scoring gives, frame by frame, and what it takes to go on with it. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from glus.errors import InputError


@dataclass(frozen=True)
class FrameScore:
    """How good a place to start a frame is for an expression: the IoU that GLUS is expected to reach there.

    Attributes:
        frame: index in the video.
        score: any number; not finite where the model's arithmetic broke down.
    """

    frame: int
    score: float


def finite(
    results: Iterable[tuple[int, FrameScore]], names: Sequence[str]
) -> Iterator[tuple[int, FrameScore | InputError]]:
    """Scores as they come; a query with one that is no number ends with an error in its place (defect 20).

    Args:
        names: of the frames.
    """
    broken: set[int] = set()
    for number, result in results:
        if number in broken:
            continue
        if math.isfinite(result.score):
            yield number, result
            continue
        broken.add(number)
        yield (
            number,
            InputError(
                f"the score of frame {names[result.frame]} is {result.score}: the model's numbers overflow or its "
                "weights are damaged; try --precision fp32, or check the checkpoint"
            ),
        )


def best_frame(scores: Sequence[float]) -> int:
    """The frame to start from: the highest score, among equals the first."""
    return max(range(len(scores)), key=scores.__getitem__)
