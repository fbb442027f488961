"""`python -m glus train`: train, resume, dry-run or replay, and export what was trained."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glus.errors import InputError
from glus.training.flags import given, log_dir_of, overrides

if TYPE_CHECKING:
    from glus.api import GLUS
    from glus.training.config import TrainConfig
    from glus.training.launch import Place
    from glus.training.trainer import Trainer

logger = logging.getLogger(__name__)

MODEL = "model"
DRY_STEPS = 2
"""Steps of a dry run; the first one is not timed."""


def main(argv: Sequence[str]) -> int:
    args = given(argv)  # --help answers before torch is loaded
    from glus.training.config import merge, read_content, train_config

    content = merge(read_content(args.config) if args.config else {}, overrides(args))
    if "model" not in content:
        raise InputError("nothing to start from: give --version, or a --config with model.version or model.sizes")
    config = train_config(content, args.config or "command line")
    from glus.training.launch import join

    place = join()
    if not place.is_main:
        logging.getLogger().setLevel(logging.ERROR)
    log_dir = Path(log_dir_of(args))
    if args.replay is not None:
        return run_replay(config, place, Path(args.replay))
    from glus.training.failures import NonFiniteLoss

    try:
        if args.dry_run:
            return run_dry(config, place, log_dir)
        return run_training(config, place, log_dir, args)
    except NonFiniteLoss as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def run_training(config: TrainConfig, place: Place, log_dir: Path, args: argparse.Namespace) -> int:
    """Train to the end or to the time limit, then export."""
    from glus.training.checkpointing import TOKENIZER
    from glus.training.launch import barrier

    glus, trainer = make_trainer(config, place, log_dir)
    result = trainer.run(not args.no_resume, lambda: glus.tokenizer.save(log_dir / TOKENIZER))
    if not result.finished:
        logger.info("time is up after step %d of %d; the same command goes on", result.step, config.loop.steps)
        return 0
    if place.is_main:
        export(log_dir)
        best = f"; best J&F {100 * result.best.score:.1f} at step {result.best.step}" if result.best else ""
        sys.stdout.write(f"trained {result.step} steps{best}\n{log_dir / MODEL}\n")
    barrier()
    return 0


def make_trainer(config: TrainConfig, place: Place, log_dir: Path) -> tuple[GLUS, Trainer]:
    """Everything a run needs, built and checked."""
    from glus.training.build import about, build_model, build_source, build_task, build_validator
    from glus.training.config import identity
    from glus.training.trainer import Trainer

    source = build_source(config)  # first: its faults show at once, while a large model takes minutes
    glus = build_model(config)
    task, validator = build_task(config, glus, source, place), build_validator(config, glus)
    return glus, Trainer(task, config.loop, place, log_dir, identity(config), about(config, glus), validator)


def export(log_dir: Path) -> None:
    """Write the newest checkpoint as a loadable folder."""
    from glus.training.merge import export_checkpoint

    export_checkpoint(log_dir, log_dir / MODEL)


def run_dry(config: TrainConfig, place: Place, log_dir: Path) -> int:
    """Show what learns and how long a step takes; nothing is written."""
    from glus.training.loading import micro_batches
    from glus.training.logs import memory_mb
    from glus.training.parameters import trainable_text

    glus, trainer = make_trainer(config, place, log_dir)
    trainer.keeps_failures = False
    batches = micro_batches(trainer.task, config.loop, place, 0)
    report, seconds = None, 0.0
    for step in range(min(DRY_STEPS, config.loop.steps)):
        started = time.monotonic()
        report = trainer.step(step, batches)
        seconds = time.monotonic() - started
    assert report is not None
    if place.is_main:
        loop = config.loop
        samples = loop.batch_size * loop.grad_accumulation_steps * place.world
        losses = ", ".join(f"{name} {value:.4g}" for name, value in report.losses.items())
        memory = ", ".join(f"{name} {value:.0f}" for name, value in memory_mb(place.device).items())
        waited = f"waited {report.waiting:.2f} s for data"
        sys.stdout.write(
            f"{trainable_text(glus.model)}\n"
            f"{place.world} processes on {place.device.type}, {samples} samples a step, {loop.steps} steps\n"
            f"one step: {seconds:.2f} s, {samples / seconds:.2f} samples/s, {waited}\n"
            f"{losses}\n{memory}\n"
        )
    return 0


def run_replay(config: TrainConfig, place: Place, path: Path) -> int:
    """Run the batches of a saved failure and say where it begins."""
    from glus.training.build import build_model, build_source, build_task
    from glus.training.failures import replay

    task: Any = build_task(config, build_model(config), build_source(config), place)
    for found in replay(path, task, place.device, config.loop.precision == "bf16_autocast"):
        losses = ", ".join(f"{name} {value:.4g}" for name, value in found.scalars.items())
        where = f"not finite from {found.first} on" if found.first else "finite"
        sys.stdout.write(f"micro-batch {found.micro}: {'; '.join(found.samples)}\n  {losses}\n  {where}\n")
    return 0
