"""Files written by threads while the caller goes on, at most so many at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

THREADS = 2  # encoding a mask takes under a millisecond; the rest is waiting for a file system
WAITING = 32  # masks handed over and not yet on disk: bounds memory, and holds the model back on a slow disk


class BackgroundWriter:
    """Runs writing tasks in threads; the first that fails stops all.

    For one caller. After a failure nothing that waits is begun, and `submit` raises what the task raised: the
    caller hears of a full disk at its next file, not at the end.
    """

    def __init__(self, threads: int = THREADS, waiting: int = WAITING) -> None:
        self._pool = ThreadPoolExecutor(threads, "write")
        self._room = threading.BoundedSemaphore(waiting)
        self._failure: BaseException | None = None

    def submit(self, task: Callable[[], None]) -> Future[None]:
        """Hand over a task; waits only while too many are under way.

        Raises:
            whatever an earlier task raised.
        """
        self.check()
        self._room.acquire()
        future = self._pool.submit(self._run, task)
        future.add_done_callback(self._done)
        return future

    def check(self) -> None:
        """Raise what a task raised, if one did."""
        if self._failure is not None:
            raise self._failure

    def _run(self, task: Callable[[], None]) -> None:
        self.check()
        try:
            task()
        except BaseException as error:
            self._failure = error
            raise

    def _done(self, future: Future[None]) -> None:  # also of a task that was dropped
        self._room.release()

    def close(self) -> None:
        """Drop what has not begun, wait for the rest, end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
