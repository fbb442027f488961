"""What a run writes down: one JSON line per step, TensorBoard, a progress bar. Only rank 0 does (D35).

<log_dir>/log.jsonl       {"kind": "step" | "validation", "step": N, ...}; N counts over the whole run
<log_dir>/tensorboard/    the same numbers, and pictures, at the same N
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from glus.errors import InputError
from glus.io import disk_errors, write_bytes
from glus.training.config import LoggingConfig
from glus.training.launch import INSTALL
from glus.video import Frame

logger = logging.getLogger(__name__)

LOG, TENSORBOARD = "log.jsonl", "tensorboard"
QUIET_SECONDS = 30.0
"""Between two progress lines where there is no terminal for a bar."""


class Means:
    """Running means of named scalars that are not present everywhere; sums stay on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, torch.Tensor]) -> None:
        for name, value in scalars.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def totals(self) -> dict[str, tuple[float, int]]:
        """(sum, count) by name; the host waits for the device once."""
        if not self._sums:
            return {}
        values = torch.stack([value.reshape(()) for value in self._sums.values()]).tolist()
        return {name: (value, self._counts[name]) for name, value in zip(self._sums, values, strict=True)}


def joined_means(parts: Iterable[Mapping[str, tuple[float, int]]]) -> dict[str, float]:
    """Means over the totals of several ranks or steps."""
    sums: dict[str, tuple[float, int]] = {}
    for part in parts:
        for name, (value, count) in part.items():
            before = sums.get(name, (0.0, 0))
            sums[name] = (before[0] + value, before[1] + count)
    return {name: value / count for name, (value, count) in sums.items()}


def memory_mb(device: torch.device) -> dict[str, float]:
    """Largest resident memory of the process so far, and of the GPU."""
    scale = 1 << (20 if sys.platform == "darwin" else 10)
    out = {"rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 1)}
    if device.type == "cuda":
        out["gpu_mb"] = round(torch.cuda.max_memory_allocated(device) / (1 << 20), 1)
    return out


class Logs:
    """The logs of a run on rank 0.

    Args:
        done: steps behind the run; lines and pictures of later ones, left by a killed run, are removed.

    Raises:
        InputError: TensorBoard is asked for but not installed.
    """

    def __init__(self, log_dir: Path, config: LoggingConfig, done: int, steps: int) -> None:
        self.path = log_dir / LOG
        with disk_errors(self.path):
            log_dir.mkdir(parents=True, exist_ok=True)
            truncate(self.path, done)
        self._board = _board(log_dir / TENSORBOARD, done) if config.tensorboard else None
        terminal = config.progress and sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=not terminal, dynamic_ncols=True)
        self._quiet = config.progress and not terminal
        self._steps, self._said = steps, 0.0

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Note the (mean) values of the steps up to `step`."""
        self._append({"kind": "step", "step": step, **values})
        self._scalars("train", step, values)

    def validation(self, step: int, values: Mapping[str, float], pictures: Mapping[str, Frame]) -> None:
        """Note a validation; pictures are uint8 (H, W, 3)."""
        self._append({"kind": "validation", "step": step, **values})
        self._scalars("validation", step, values)
        if self._board is not None:
            for name, picture in pictures.items():
                self._board.add_image(f"validation/{name}", picture, step, dataformats="HWC")
            self._board.flush()
        logger.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def progress(self, step: int, loss: float) -> None:
        """Move the bar, or say something now and then."""
        self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update(1)
        if self._quiet and (time.monotonic() - self._said > QUIET_SECONDS or step == self._steps):
            self._said = time.monotonic()
            logger.info("step %d of %d: loss %.4f", step, self._steps, loss)

    def close(self) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
        with disk_errors(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, data)  # one call: a killed process leaves a whole line or none
            finally:
                os.close(descriptor)

    def _scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)


def _board(folder: Path, done: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(f"TensorBoard is not installed: {INSTALL}, or set loop.logging.tensorboard: false")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=done + 1)


def truncate(path: Path, done: int) -> None:
    """Keep the whole lines of steps up to `done`."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: a broken line is removed", path)
            continue
        if step <= done:
            kept.append(line)
    write_bytes(path, b"".join(kept))
