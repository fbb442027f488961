"""Micro-batches of a rank, step by step, from loader workers; faults of the data name their sample (D32)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from glus.errors import InputError
from glus.training.batches import StepSampler, sample_loader, step_numbers
from glus.training.config import LoopConfig
from glus.training.launch import Place
from glus.training.task import Samples, Task


@dataclass(frozen=True)
class Refused:
    """What a sample that cannot be had becomes on its way out of a loader worker."""

    number: int
    reason: str


class _Checked(Dataset[Any]):
    """Turns an `InputError` into a value: across processes its message would arrive inside a traceback."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, number: int) -> Any:
        try:
            return self.samples[number]
        except InputError as error:
            return Refused(number, str(error))


class _Collate:
    def __init__(self, task: Task) -> None:
        self._collate = task.collate

    def __call__(self, samples: list[Any]) -> Any:
        refused = [sample for sample in samples if isinstance(sample, Refused)]
        return refused[0] if refused else self._collate(samples)


def numbers_of(config: LoopConfig, place: Place, step: int) -> list[list[int]]:
    """Sample numbers of the micro-batches of `step`, from 0, on this rank."""
    return step_numbers(
        step,
        accumulation=config.grad_accumulation_steps,
        batch=config.batch_size,
        world=place.world,
        rank=place.rank,
    )


def micro_batches(task: Task, config: LoopConfig, place: Place, start: int) -> Iterator[Any]:
    """Every micro-batch of this rank from step `start` to the end; nothing that goes wrong is swallowed.

    Raises:
        InputError: a sample cannot be read; the message names it.
    """
    sampler = StepSampler(
        start,
        config.steps,
        accumulation=config.grad_accumulation_steps,
        batch=config.batch_size,
        world=place.world,
        rank=place.rank,
    )
    cuda = place.device.type == "cuda"
    for batch in sample_loader(_Checked(task.dataset), sampler, config.workers, cuda, _Collate(task)):
        if isinstance(batch, Refused):
            raise InputError(f"training sample {batch.number} cannot be used: {batch.reason}")
        yield batch
