"""The machine that a benchmark runs on: its clock, its memory, and how fast it can be at best."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


class Clock:
    """Seconds: CPU seconds of this process on a CPU; on a GPU, after all that was asked of it is done."""

    def __init__(self, device: str) -> None:
        self._gpu = device == "cuda"

    def __call__(self) -> float:
        if not self._gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: str) -> float | None:
    """Peak memory since `reset_peak`, the model included; None where the system does not tell."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _status_mib("VmHWM")


def held_mib(device: str) -> float | None:
    """Memory held now."""
    return torch.cuda.memory_allocated() / 2**20 if device == "cuda" else _status_mib("VmRSS")


def _status_mib(name: str) -> float | None:
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) / 1024


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the machine does at best, measured.

    Attributes:
        operations: floating-point operations a second, of a large matrix product.
        bytes: read or written a second, of a large copy.
    """

    operations: float
    bytes: float

    def floor(self, operations: float, size: float) -> float:
        """The least seconds for so many operations on so many bytes."""
        return max(operations / self.operations, size / self.bytes)


def measured_rates(device: str, dtype: torch.dtype) -> Rates:
    """Each the best of a few tries."""
    clock, gpu = Clock(device), device == "cuda"
    side, length = (8192, 1 << 28) if gpu else (1024, 1 << 24)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    numbers = torch.zeros(length, device=device, dtype=torch.float32)
    copy = torch.empty_like(numbers)

    def best(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(5):
            start = clock()
            work()
            seconds.append(clock() - start)
        return max(min(seconds), 1e-9)

    return Rates(2 * side**3 / best(lambda: a @ b), 2 * numbers.nbytes / best(lambda: copy.copy_(numbers)))
