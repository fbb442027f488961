"""The loop: steps, logs, validation, checkpoints. One for GLUS and for every other `Task`."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from glus.errors import InputError
from glus.out_of_memory import is_out_of_memory
from glus.training.checkpointing import Best, Checkpoints, RunFacts, move_aside
from glus.training.config import LoopConfig
from glus.training.engine import Engine
from glus.training.failures import Moment, NonFiniteLoss, save_failure
from glus.training.launch import Place, gather
from glus.training.loading import micro_batches, numbers_of
from glus.training.logs import Logs, Means, joined_means, memory_mb
from glus.training.schedule import learning_rate
from glus.training.task import Task, to_device
from glus.training.validation import Validation

logger = logging.getLogger(__name__)


class Validator(Protocol):
    """Scores the task's model; called by all ranks together, in evaluation mode and without gradients."""

    def __call__(self, model: Any, place: Place) -> Validation: ...


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: optimizer steps behind it.
        finished: all of them; False where the time was up first.
        checkpoint: the newest one.
    """

    step: int
    finished: bool
    checkpoint: Path
    best: Best | None


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, over all ranks.

    Attributes:
        losses: means of the task's scalars.
        grad_norm: None where fp16 overflowed and left the step out.
        waiting: seconds this rank waited for data.
        out_of_time: rank 0's time is up.
    """

    losses: dict[str, float]
    rate: float
    grad_norm: float | None
    seconds: float
    waiting: float
    out_of_time: bool


def seed_everything(seed: int, rank: int) -> None:
    """Seed the global generators, differently for each rank (D37)."""
    own = int(np.random.default_rng([seed, rank]).integers(2**31))
    random.seed(own)
    np.random.seed(own)
    torch.manual_seed(own)


class Trainer:
    """A run of a task.

    Args:
        place: from `glus.training.launch.join`.
        identity, about: see `RunFacts`.
    """

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        place: Place,
        log_dir: Path,
        identity: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
        validator: Validator | None = None,
    ) -> None:
        self.task = task
        self.config = config
        self.place = place
        self.log_dir = log_dir
        self.validator = validator
        self.keeps_failures = True
        self.facts = RunFacts(task.name, place.world, dict(identity), dict(about or {}))
        self.checkpoints = Checkpoints(log_dir, config.checkpoints, self.facts, place)
        self._started = time.monotonic()
        seed_everything(config.seed, place.rank)
        with self._memory():
            self.engine = Engine(task.module, config, place, task.model.finish_loading)
        task.train_mode()

    def run(self, resume: bool = True, started: Callable[[], None] | None = None) -> TrainResult:
        """Train to the end, from the newest complete checkpoint if there is one.

        Without `resume` an earlier run's files are first moved into a folder of their own.

        Args:
            started: called on rank 0 once the log folder is sure to be this run's, to write what belongs there.

        Raises:
            InputError: bad data, a checkpoint of another configuration, no memory left.
            NonFiniteLoss: a loss or gradient is NaN or infinite; a folder for replay is left in the log folder.
        """
        if not resume and self.place.is_main:
            move_aside(self.log_dir)
        newest = self.checkpoints.newest() if resume else None
        start = self.checkpoints.load(newest, self.engine, self.task) if newest is not None else 0
        self.checkpoints.forget_after(start)
        best = self.checkpoints.best(newest) if newest is not None else None
        if newest is not None and self.place.is_main:
            logger.info("resuming after step %d from %s", start, newest)
        logs = None
        if self.place.is_main:
            if started is not None:
                started()
            logs = Logs(self.log_dir, self.config.logging, start, self.config.steps)
        try:
            return self._loop(start, best, newest, logs)
        finally:
            if logs is not None:
                logs.close()

    def _loop(self, start: int, best: Best | None, newest: Path | None, logs: Logs | None) -> TrainResult:
        config, step, stop = self.config, start, start >= self.config.steps
        batches = micro_batches(self.task, config, self.place, start)
        lines = _Lines(config, self.place)
        while not stop:
            report = self.step(step, batches)
            step += 1
            stop = step == config.steps or report.out_of_time
            lines.add(report)
            if logs is not None:
                if step % config.logging.every == 0 or stop:
                    logs.step(step, lines.mean())
                logs.progress(step, report.losses.get("loss", float("nan")))
            improved = False
            if config.validate_every and (step % config.validate_every == 0 or step == config.steps):
                found = self.validate()
                if found is not None:
                    improved = best is None or found.score > best.score
                    best = Best(step, found.score) if improved else best
                    if logs is not None:
                        logs.validation(step, found.scalars, found.pictures)
            if step % config.checkpoints.every == 0 or stop or improved:
                newest = self.checkpoints.save(self.engine, self.task, step, best)
        assert newest is not None  # a run without steps is refused, and the last step saves
        return TrainResult(step, step >= config.steps, newest, best)

    def step(self, step: int, batches: Iterator[Any]) -> StepReport:
        """Optimizer step `step`, counted from 0."""
        started, waiting, means = time.monotonic(), 0.0, Means()
        rate = learning_rate(self.config.optimizer, step + 1, self.config.steps)
        moments: list[Moment] = []
        numbers = numbers_of(self.config, self.place, step)
        losses: dict[str, float] = {}
        norm, out_of_time = None, False
        for micro, drawn in enumerate(numbers):
            asked = time.monotonic()
            batch = next(batches)
            moments.append(Moment.now(step, micro, drawn))
            with self._memory():
                batch = to_device(batch, self.place.device)
                waiting += time.monotonic() - asked
                loss, scalars = self.engine.forward(batch)
                moments[-1].loss = loss.detach()
                means.add({"loss": loss, **scalars})
                self.engine.backward(loss)
                if micro + 1 == len(numbers):
                    losses, out_of_time = self._agree(step, moments, means)
                norm = self.engine.step(rate)
        if norm is not None and not np.isfinite(norm):
            self._fail(step, moments, f"the gradient norm is {norm}")
        return StepReport(losses, rate, norm, time.monotonic() - started, waiting, out_of_time)

    def _agree(self, step: int, moments: list[Moment], means: Means) -> tuple[dict[str, float], bool]:
        """Losses over all ranks and whether rank 0 is out of time, before the weights change.

        Raises:
            NonFiniteLoss: on any rank.
        """
        elapsed = (time.monotonic() - self._started) / 60
        out_of_time = bool(self.config.max_minutes) and elapsed >= self.config.max_minutes
        parts = gather(self.place, (means.totals(), out_of_time))
        losses = joined_means(part[0] for part in parts)  # type: ignore[index]
        if not np.isfinite(losses["loss"]):
            self._fail(step, moments, f"the loss is {losses['loss']}")
        return losses, bool(parts[0][1])  # type: ignore[index]

    def _fail(self, step: int, moments: list[Moment], what: str) -> None:
        if not self.keeps_failures:
            raise NonFiniteLoss(f"step {step + 1}: {what}")
        folder = self.log_dir / f"failure-step-{step + 1:08d}"
        save_failure(folder, self.engine, self.task, moments, self.facts, self.place)
        raise NonFiniteLoss(
            f"step {step + 1}: {what}. Weights and batches are in {folder}; look at one by "
            f"--replay {folder}/batch-rank-0.pt with the same configuration"
        )

    @contextlib.contextmanager
    def _memory(self) -> Iterator[None]:
        """Errors of no memory inside come out as an InputError that says what to lower."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise InputError(self._lower()) from error
            raise

    def _lower(self) -> str:
        config = self.config
        return (
            f"out of memory on rank {self.place.rank}. Lower loop.batch_size (now {config.batch_size}; raise "
            f"grad_accumulation_steps, now {config.grad_accumulation_steps}, by as much), the frames or "
            "expressions of a sample (fields of data), or the picture size; turn gradient_checkpointing on; raise "
            f"deepspeed.stage (now "
            f"{config.deepspeed.stage}) up to 3, or set deepspeed.offload cpu (now {config.deepspeed.offload})"
        )

    def validate(self) -> Validation | None:
        """Score the model as it is; the run's generators and mode are as before afterwards."""
        if self.validator is None:
            return None
        cuda = [self.place.device] if self.place.device.type == "cuda" else []
        self.task.module.eval()
        try:
            with torch.random.fork_rng(devices=cuda), torch.no_grad(), self.engine.whole_weights():
                return self.validator(self.task.model, self.place)
        finally:
            self.task.train_mode()


class _Lines:
    """Steps to log lines, means over the steps since the last line."""

    def __init__(self, config: LoopConfig, place: Place) -> None:
        self._samples = config.batch_size * config.grad_accumulation_steps * place.world
        self._device = place.device
        self._reports: list[StepReport] = []

    def add(self, report: StepReport) -> None:
        self._reports.append(report)

    def mean(self) -> dict[str, float]:
        """The line of the steps added since the last call."""
        reports, self._reports = self._reports, []
        seconds = sum(report.seconds for report in reports)
        norms = [report.grad_norm for report in reports if report.grad_norm is not None]
        line = joined_means({name: (v, 1) for name, v in report.losses.items()} for report in reports)
        line["lr"] = reports[-1].rate
        if norms:
            line["grad_norm"] = sum(norms) / len(norms)
        line["samples_per_second"] = round(self._samples * len(reports) / seconds, 4)
        line["step_seconds"] = round(seconds / len(reports), 4)
        line["data_seconds"] = round(sum(report.waiting for report in reports) / len(reports), 4)
        return {**line, **memory_mb(self._device)}
