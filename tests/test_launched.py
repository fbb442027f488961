"""Which process of a launch this is."""

from __future__ import annotations

import pytest

from glus.errors import InputError
from glus.launched import Launched, launched

STEP = {"SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, Launched(0, 1, 0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "3"}, Launched(1, 3, 0, 1)),  # by hand
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Launched(5, 8, 1, 4)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Launched(5, 8, 1, 2)),
        ({"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", **STEP}, Launched(5, 7, 1, 2)),
        ({"SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "3", **STEP}, Launched(6, 7, 0, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, Launched(0, 1, 0, 1)),  # sbatch without srun
        ({"SLURM_PROCID": "6", "RANK": "0", "WORLD_SIZE": "2", **STEP}, Launched(0, 2, 0, 1)),  # torchrun in srun
    ],
)
def test_what_launchers_say(environ: dict[str, str], found: Launched) -> None:
    assert launched(environ) == found


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "process 2 of 2"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK must be a number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK must be a number"),
        ({"SLURM_PROCID": "", **STEP}, "SLURM_PROCID must be a number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "here 2 of 2"),
    ],
)
def test_what_does_not_fit_together(environ: dict[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        launched(environ)
