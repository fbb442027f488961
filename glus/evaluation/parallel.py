"""Work spread over processes: ordered results, a progress bar, and no run that hangs."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from tqdm import tqdm

from glus.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_items(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None = None,
    label: str = "",
    unit: str = "video",
) -> list[Result]:
    """`[function(item) for item in items]`, in that order whatever the number of processes.

    Args:
        function: a module-level function; it, the items and the results are pickled when there is more than
            one worker.
        workers: processes; None for one per processor. 1 works in this process.

    Raises:
        InputError: less than one worker.
        whatever `function` raises, and `BrokenProcessPool` when a worker is killed; the rest is abandoned.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be at least 1, found {workers}")
    workers = min(default_workers() if workers is None else workers, len(items))
    with tqdm(total=len(items), desc=label, unit=unit, disable=None) as bar:
        if workers <= 1:
            results = []
            for item in items:
                results.append(function(item))
                bar.update()
            return results
        # Not "fork": this process may already run threads (OpenCV, OpenMP) that a fork would copy mid-lock.
        context: multiprocessing.context.BaseContext = multiprocessing.get_context("spawn")
        if "forkserver" in multiprocessing.get_all_start_methods():
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([function.__module__])  # one import for all workers
        pool = ProcessPoolExecutor(workers, mp_context=context)
        try:
            futures = [pool.submit(function, item) for item in items]
            for future in as_completed(futures):
                future.result()
                bar.update()
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
