"""Seeded randomness with a bit stream that is ours to keep.

Everything is built from PCG64's raw uniform doubles, because numpy promises those to stay the same between
releases, which it does not promise for `choice`, `normal` or `permutation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Dice:
    """A deterministic source of choices; the same key gives the same rolls."""

    def __init__(self, *key: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(key))))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * float(self._rng.random())

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return min(int(self._rng.random() * count), count - 1)

    def chance(self, probability: float) -> bool:
        return float(self._rng.random()) < probability

    def sign(self) -> float:
        return 1.0 if self.chance(0.5) else -1.0

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[tuple[T, float]]) -> T:
        """One item of (item, weight) pairs; weights need not sum to one."""
        left = self.uniform(0.0, sum(weight for _, weight in items))
        for item, weight in items:
            left -= weight
            if left < 0:
                return item
        return items[-1][0]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        out = list(items)
        for last in range(len(out) - 1, 0, -1):
            other = self.below(last + 1)
            out[last], out[other] = out[other], out[last]
        return out

    def grid(self, rows: int, columns: int) -> np.ndarray:
        """Uniform [0, 1) noise, float32 [rows, columns]."""
        return self._rng.random((rows, columns)).astype(np.float32)
