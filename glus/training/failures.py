"""What is left behind when a loss is not a number: the weights, the batches, the generators; and how to replay.

<log_dir>/failure-step-N/       a checkpoint as in `glus.training.checkpointing`, before step N
    batch-rank-0.pt ...         per rank the micro-batches of the step, with the generators before each
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glus.errors import InputError
from glus.io import disk_errors, expect, field
from glus.modeling.checkpoints import check_fit, unpickle
from glus.training.checkpointing import RunFacts, generators, restore_generators, write_state
from glus.training.engine import Engine
from glus.training.launch import Place
from glus.training.shards import read_shards
from glus.training.task import Task, names_of, to_device

logger = logging.getLogger(__name__)

PACKAGES = ("glus.", "kfs.")
BATCH = "batch-"
"""`batch-rank-N.pt` lies beside `rank-N.pt`."""


class NonFiniteLoss(RuntimeError):
    """A loss or gradient is NaN or infinite; the message says where the batch was saved."""


@dataclass
class Moment:
    """A micro-batch about to be run: enough to run it again.

    Attributes:
        numbers: of its samples.
        loss: set once it is known; on the device.
    """

    step: int
    micro: int
    numbers: list[int]
    generators: dict[str, Any]
    loss: torch.Tensor | None = None

    @staticmethod
    def now(step: int, micro: int, numbers: list[int]) -> Moment:
        return Moment(step, micro, numbers, generators())


def save_failure(
    folder: Path, engine: Engine, task: Task, moments: Sequence[Moment], facts: RunFacts, place: Place
) -> None:
    """Write the folder; every rank calls this. Batches are drawn again, which gives the same (D37)."""
    with disk_errors(folder):
        write_state(folder, engine, task, moments[0].step, facts, place)
        content = [
            {
                "micro": moment.micro,
                "numbers": moment.numbers,
                "loss": float("nan") if moment.loss is None else float(moment.loss),
                "generators": moment.generators,
                "batch": task.collate([task.dataset[number] for number in moment.numbers]),
            }
            for moment in moments
        ]
        torch.save({"step": moments[0].step, "micro_batches": content}, folder / f"{BATCH}rank-{place.rank}.pt")


@dataclass(frozen=True)
class Replay:
    """One micro-batch run again.

    Attributes:
        samples: what they are.
        scalars: loss and the task's own.
        first: name of the first module whose output was not finite, if any.
    """

    micro: int
    samples: list[str]
    scalars: dict[str, float]
    first: str | None


def replay(path: Path, task: Task, device: torch.device, autocast: bool) -> list[Replay]:
    """Run the micro-batches of a saved failure from the weights beside them, forward only.

    The contrastive bank is as it was after the step's forward passes, not before them.

    Raises:
        InputError: unreadable, of another model, or holding other objects than tensors, plain values and
            dataclasses of our packages.
    """
    batches = _read_batches(path)
    shards = read_shards(path.parent)
    state = {name.removeprefix("module."): value for name, value in shards.state.items()}
    wanted = {name: tuple(value.shape) for name, value in task.module.state_dict().items()}
    check_fit(wanted, state, f"{path.parent}, with this configuration,")
    task.module.load_state_dict(state)
    rank = path.with_name(path.name.removeprefix(BATCH))
    task.load_state_dict(field(unpickle(rank, mapped=False), "task", dict, rank, "file"))
    task.model.finish_loading()
    task.module.to(device)
    task.train_mode()
    return [_replayed(part, task, device, autocast) for part in batches]


def _replayed(part: dict[str, Any], task: Task, device: torch.device, autocast: bool) -> Replay:
    found: list[str] = []
    hooks = [module.register_forward_hook(_finder(name, found)) for name, module in task.module.named_modules()]
    restore_generators(part["generators"])
    batch = part["batch"]
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            output = task.module(to_device(batch, device))
    finally:
        for hook in hooks:
            hook.remove()
    scalars = {"loss": float(output.loss), **{name: float(value) for name, value in output.scalars.items()}}
    samples = names_of(batch) if isinstance(batch, list) else []
    numbered = [f"{number} {name}" for number, name in zip(part["numbers"], samples, strict=False)]
    return Replay(
        part["micro"], numbered or [str(n) for n in part["numbers"]], scalars, found[0] if found else None
    )


def _finder(name: str, found: list[str]) -> Any:
    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = [output] if isinstance(output, torch.Tensor) else output
        if isinstance(tensors, list | tuple) and any(
            isinstance(t, torch.Tensor) and t.is_floating_point() and not t.isfinite().all() for t in tensors
        ):
            found.append(name or type(module).__name__)

    return look


def _read_batches(path: Path) -> list[dict[str, Any]]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a saved batch: {error}") from None
    content = unpickle(path, [_data_class(path, name) for name in names], mapped=False)
    batches: list[dict[str, Any]] = field(content, "micro_batches", list, path, "file")
    for number, part in enumerate(batches):
        expect(part, dict, path, f"micro_batches[{number}]")
    return batches


def _data_class(path: Path, name: str) -> type:
    """A dataclass of our packages; anything else, its functions above all, a file could call as it likes."""
    module, _, last = name.rpartition(".")
    found = None
    if module.startswith(PACKAGES) and module in sys.modules:
        found = getattr(sys.modules[module], last, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found) and found.__module__ == module):
        raise InputError(f"{path} holds {name}; only data and dataclasses of the task at hand are read")
    return found
