"""What a training command does, whatever it trains: train and export, or dry-run, or replay."""

from __future__ import annotations

import logging
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from glus.text.tokenizer import GlusTokenizer
from glus.training import launch
from glus.training.checkpointing import TOKENIZER
from glus.training.config import LoopConfig
from glus.training.failures import NonFiniteLoss, replay
from glus.training.flags import log_dir_of
from glus.training.launch import Place
from glus.training.loading import micro_batches
from glus.training.logs import memory_mb
from glus.training.parameters import trainable_text
from glus.training.task import Task
from glus.training.trainer import Trainer, Validator

logger = logging.getLogger(__name__)

MODEL = "model"
DRY_STEPS = 2
"""Steps of a dry run; the first one is not timed."""


@dataclass(frozen=True)
class Prepared:
    """Everything of a run but the loop, built and checked.

    Attributes:
        tokenizer: saved beside the checkpoints.
        identity, about: see `glus.training.checkpointing.RunFacts`.
    """

    task: Task
    tokenizer: GlusTokenizer
    identity: Mapping[str, Any]
    about: Mapping[str, Any]


class Recipe(Protocol):
    """What a configuration trains.

    Attributes:
        metric: what the best checkpoint is chosen by, for people.
    """

    metric: str

    @property
    def loop(self) -> LoopConfig: ...

    def prepare(self, place: Place) -> Prepared:
        """Build model, samples and task."""
        ...

    def validator(self, prepared: Prepared) -> Validator | None:
        """None where validation is off."""
        ...

    def export(self, log_dir: Path, out: Path) -> None:
        """Write the newest checkpoint of the run as a loadable folder."""
        ...


def run(recipe: Recipe, args: Namespace) -> int:
    """Do what the options of `glus.training.flags.run_parser` ask for; the command's exit status."""
    place = launch.join()
    if not place.is_main:
        logging.getLogger().setLevel(logging.ERROR)
    if args.replay is not None:
        return run_replay(recipe, place, Path(args.replay))
    log_dir = Path(log_dir_of(args))
    try:
        if args.dry_run:
            return run_dry(recipe, place, log_dir)
        return run_training(recipe, place, log_dir, not args.no_resume)
    except NonFiniteLoss as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def run_training(recipe: Recipe, place: Place, log_dir: Path, resume: bool) -> int:
    """Train to the end or to the time limit, then export."""
    prepared, trainer = make_trainer(recipe, place, log_dir)
    result = trainer.run(resume, lambda: prepared.tokenizer.save(log_dir / TOKENIZER))
    if not result.finished:
        logger.info("time is up after step %d of %d; the same command goes on", result.step, recipe.loop.steps)
        return 0
    if place.is_main:
        recipe.export(log_dir, log_dir / MODEL)
        best = (
            f"; best {recipe.metric} {100 * result.best.score:.1f} at step {result.best.step}"
            if result.best
            else ""
        )
        sys.stdout.write(f"trained {result.step} steps{best}\n{log_dir / MODEL}\n")
    launch.barrier()
    return 0


def make_trainer(recipe: Recipe, place: Place, log_dir: Path) -> tuple[Prepared, Trainer]:
    """Everything a run needs, built and checked."""
    prepared = recipe.prepare(place)
    validator = recipe.validator(prepared)
    return prepared, Trainer(
        prepared.task, recipe.loop, place, log_dir, prepared.identity, prepared.about, validator
    )


def run_dry(recipe: Recipe, place: Place, log_dir: Path) -> int:
    """Show what learns and how long a step takes; nothing is written."""
    prepared, trainer = make_trainer(recipe, place, log_dir)
    trainer.keeps_failures = False
    loop = recipe.loop
    batches = micro_batches(trainer.task, loop, place, 0)
    report, seconds = None, 0.0
    for step in range(min(DRY_STEPS, loop.steps)):
        started = time.monotonic()
        report = trainer.step(step, batches)
        seconds = time.monotonic() - started
    assert report is not None
    if place.is_main:
        samples = loop.batch_size * loop.grad_accumulation_steps * place.world
        losses = ", ".join(f"{name} {value:.4g}" for name, value in report.losses.items())
        memory = ", ".join(f"{name} {value:.0f}" for name, value in memory_mb(place.device).items())
        waited = f"waited {report.waiting:.2f} s for data"
        sys.stdout.write(
            f"{trainable_text(prepared.task.model)}\n"
            f"{place.world} processes on {place.device.type}, {samples} samples a step, {loop.steps} steps\n"
            f"one step: {seconds:.2f} s, {samples / seconds:.2f} samples/s, {waited}\n"
            f"{losses}\n{memory}\n"
        )
    return 0


def run_replay(recipe: Recipe, place: Place, path: Path) -> int:
    """Run the batches of a saved failure and say where it begins."""
    task = recipe.prepare(place).task
    for found in replay(path, task, place.device, recipe.loop.precision == "bf16_autocast"):
        losses = ", ".join(f"{name} {value:.4g}" for name, value in found.scalars.items())
        where = f"not finite from {found.first} on" if found.first else "finite"
        sys.stdout.write(f"micro-batch {found.micro}: {'; '.join(found.samples)}\n  {losses}\n  {where}\n")
    return 0
