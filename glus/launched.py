"""Which process this is among those that a launcher started: torchrun, DeepSpeed's, srun, or none at all.

The launchers say it in environment variables. Nothing is imported for it: commands ask before they load torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from glus.errors import InputError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Launched:
    """A process of a launch.

    Attributes:
        rank: 0 to `world - 1`, over all machines.
        local_rank: 0 to `local_world - 1`, on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def launched(environ: Mapping[str, str]) -> Launched:
    """Who this process is; the only one without a launcher.

    RANK and WORLD_SIZE count first: torchrun and DeepSpeed's launcher set them, and one may by hand.

    Raises:
        InputError: one of the two without the other, or numbers that do not fit together.
    """
    if "RANK" not in environ and "WORLD_SIZE" not in environ:
        return srun_task(environ) or Launched()
    if missing := [name for name in ("RANK", "WORLD_SIZE") if name not in environ]:
        raise InputError(f"RANK and WORLD_SIZE belong together, and {missing[0]} is not set; set both or none")
    local = _number(environ, "LOCAL_RANK", 0)
    local_world = _number(environ, "LOCAL_WORLD_SIZE", local + 1)  # DeepSpeed's launcher does not say
    return _checked("RANK", _number(environ, "RANK"), _number(environ, "WORLD_SIZE"), local, local_world)


def srun_task(environ: Mapping[str, str]) -> Launched | None:
    """The task of an `srun` step; None outside: `sbatch` alone starts one process that only looks like a task."""
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        return None
    rank, local = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID", 0)
    tasks = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = _number(environ, "SLURM_NODEID", 0)
    local_world = tasks[node] if node < len(tasks) else local + 1
    return _checked("SLURM_PROCID", rank, _number(environ, "SLURM_STEP_NUM_TASKS"), local, local_world)


def _tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` means 2, 2, 2, 1."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"the environment variable {name} must be a number from 0, found {text!r}")
    return int(text)


def _checked(name: str, rank: int, world: int, local_rank: int, local_world: int) -> Launched:
    if rank >= world or local_rank >= local_world:
        raise InputError(
            f"the environment variable {name} says process {rank} of {world} (here {local_rank} of "
            f"{local_world}); counting starts at 0"
        )
    return Launched(rank, world, local_rank, local_world)
