"""Frames made ready ahead of their use, by a thread, within a bound.

`ReadAhead` serves anything that is looked up by frame index: decoded frames, or decoded and transformed ones.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from glus.errors import InputError

Value = TypeVar("Value")
AHEAD = 4  # frames ready before they are asked for


class ReadAhead(Generic[Value]):
    """`get(index)` for indices 0..count-1, computed in a thread before it is asked for.

    One step to a neighbour, forward or backward, tells where the walk leads: from then on the next `ahead` values
    are made while the caller works. Any other jump is answered and foretells nothing. At most `ahead` + 2 values
    exist at a time: those ahead, the current one, and one in the making. `get` is called by one thread only, so it
    need not be thread-safe; `ReadAhead` itself is for one caller.
    """

    def __init__(self, get: Callable[[int], Value], count: int, ahead: int = AHEAD) -> None:
        if ahead < 0:
            raise InputError(f"frames to read ahead must be 0 or more, found {ahead}")
        self._get = get
        self._count = count
        self._ahead = ahead
        self._made: dict[int, Future[Value]] = {}
        self._last: int | None = None
        self._thread = ThreadPoolExecutor(1, "read-ahead")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Value:
        """The value of `index`. Raises what `get` raised for it, and only when this index is asked for."""
        index = range(self._count)[index]  # IndexError out of range, so that iteration ends
        if index != self._last or index not in self._made:
            self._plan(index)
        try:
            return self._made[index].result()
        except BaseException:
            self._made.pop(index, None)  # asked again, it is tried again
            raise

    def _plan(self, index: int) -> None:
        """Drop what lies behind or aside, then order `index` and what the walk needs next."""
        step = index - self._last if self._last is not None else 0
        wanted = [index]
        if abs(step) == 1:
            wanted += [i for n in range(1, self._ahead + 1) if 0 <= (i := index + n * step) < self._count]
        for other in self._made.keys() - set(wanted):
            self._made.pop(other).cancel()
        for i in wanted:
            if i not in self._made:
                self._made[i] = self._thread.submit(self._get, i)
        self._last = index

    def close(self) -> None:
        """End the thread; waits for the value in the making. Nothing can be asked for afterwards."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._made.clear()
