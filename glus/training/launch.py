"""Which process this is: DeepSpeed's launcher, torchrun, srun, or none at all.

The launchers say it in environment variables; without one, the process makes itself rank 0 of 1.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from types import ModuleType

import torch

from glus.errors import InputError
from glus.launched import srun_task

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SHARED_MEMORY_OPERATOR = "deepspeed_shm_comm"
INSTALL = 'pip install -e ".[train]"'


@dataclass(frozen=True)
class Place:
    """This process among those of the run.

    Attributes:
        rank: 0 to `world - 1`, over all nodes (D35).
        device: what it computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def slurm_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The launcher's variables from those of an `srun` step; empty outside one.

    Raises:
        InputError: several tasks but no address of the first.
    """
    task = srun_task(environ)
    if task is None:
        return {}
    address = environ.get("MASTER_ADDR") or environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not address and task.world > 1:
        raise InputError("srun does not say where rank 0 runs: export MASTER_ADDR (name or address of its node)")
    port = environ.get("MASTER_PORT") or str(20000 + int(environ.get("SLURM_JOB_ID", "0")) % 20000)
    values = (str(task.rank), str(task.world), str(task.local_rank), address or "127.0.0.1", port)
    return dict(zip(VARIABLES, values, strict=True))


def fill_environment(environ: MutableMapping[str, str]) -> None:
    """Set whatever `VARIABLES` the launcher has not set.

    Raises:
        InputError: some, but not all, are set.
    """
    if "RANK" not in environ and "WORLD_SIZE" not in environ:
        environ.update(slurm_variables(environ) or _alone())
    missing = [name for name in VARIABLES if name not in environ]
    if missing:
        raise InputError(f"the launcher set some variables but not {', '.join(missing)}; set all of them or none")


def _alone() -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return dict(zip(VARIABLES, ("0", "1", "0", "127.0.0.1", str(port)), strict=True))


def import_deepspeed() -> ModuleType:
    """The package, told to use the CPU where there is no GPU; it decides on import."""
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(f"training needs deepspeed: {INSTALL}")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # On a CPU it would compile an operator for its ranks to talk through shared memory, and fail where there is no
    # compiler; gloo does the same.
    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OPERATOR] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def join() -> Place:
    """Meet the other processes; once per process.

    Raises:
        InputError: deepspeed is missing, or the launcher's variables are incomplete.
    """
    deepspeed = import_deepspeed()
    fill_environment(os.environ)
    cuda = torch.cuda.is_available()
    local = int(os.environ["LOCAL_RANK"])
    if cuda and local >= torch.cuda.device_count():
        raise InputError(
            f"local rank {local}, but only {torch.cuda.device_count()} GPUs are visible: start one process per GPU"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed reports its builds there by print
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    return Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


def barrier() -> None:
    """Wait for all ranks."""
    if torch.distributed.get_world_size() > 1:
        torch.distributed.barrier()


def gather(place: Place, value: object) -> list[object]:
    """What every rank passed in, by rank."""
    if place.world == 1:
        return [value]
    out: list[object] = [None] * place.world
    torch.distributed.all_gather_object(out, value)
    return out
