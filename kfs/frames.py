"""Which frames the selector looks at (reference kfs.md, 5.3 and 7.1)."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence

MAX_IMAGES = 12


def reference_frames(length: int, target: int, max_images: int = MAX_IMAGES) -> list[int]:
    """The frames that the target is judged among when scoring: its residue class, which holds it too.

    Args:
        length: frames of the video.
        max_images: images of a prompt, the target's own included; 1 leaves the target as its only reference.
    """
    if not 0 <= target < length or max_images < 1:
        raise ValueError(f"no references for frame {target} of {length} with {max_images} images")
    step = reference_step(length, max_images)
    return list(range(target % step, length, step))


def reference_step(length: int, max_images: int = MAX_IMAGES) -> int:
    """How many residue classes a video falls into."""
    return length if max_images == 1 else math.ceil(length / (max_images - 1))


def balanced(weights: Sequence[float]) -> Iterator[int]:
    """The original's endless sequence of choices 0..n-1, each as often as its weight says."""
    total, state = sum(weights), 0
    bounds = list(itertools.accumulate(weight / total for weight in weights))
    while True:
        state = (1103515245 * state + 12345) % 256
        yield min(bisect.bisect_right(bounds, state / 256), len(weights) - 1)


def segment_borders(length: int, count: int) -> list[int]:
    """Borders of the `count` segments of a video that training draws one reference frame from each."""
    return [length * number // count for number in range(count + 1)]
