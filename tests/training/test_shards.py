"""Reading DeepSpeed's checkpoints: complete ones give the true weights, all others are refused by name."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glus.errors import InputError
from glus.training.shards import read_shards

pytest.importorskip("deepspeed")

WRITER = Path(__file__).with_name("write_shards.py")
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that two ranks of DeepSpeed wrote."""
    out = tmp_path_factory.mktemp("shards")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, WRITER, out], env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Callable[[int], Path]:
    """A copy to damage, of step 3 of a stage."""

    def make(stage: int) -> Path:
        return Path(shutil.copytree(written / f"zero{stage}" / "step-3", tmp_path / "step-3"))

    return make


@pytest.mark.parametrize("stage", STAGES)
def test_weights_are_the_true_ones(written: Path, stage: int) -> None:
    weights = read_shards(written / f"zero{stage}" / "step-3")
    assert (weights.step, weights.world_size, weights.stage) == (3, 2, stage)
    true = torch.load(written / f"zero{stage}" / "true.pt", weights_only=True)
    trained = {"first.weight", "first.bias", "last.weight", "unused"}
    assert set(weights.state) == trained | {"frozen.weight", "frozen.bias", "table"}
    assert trained <= set(true)
    for key, value in true.items():
        assert torch.equal(weights.state[key], value), key
        assert weights.state[key].dtype == torch.float32
    # Training moved them by less than bf16 shows, so rounded copies would not pass.
    if stage:
        assert not torch.equal(true["first.weight"].bfloat16().float(), true["first.weight"])


@pytest.mark.parametrize("stage", STAGES[1:])
def test_agrees_with_deepspeeds_own_tool(written: Path, stage: int) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    theirs = get_fp32_state_dict_from_zero_checkpoint(str(written / f"zero{stage}"), "step-3")
    ours = read_shards(written / f"zero{stage}" / "step-3").state
    # Of stage 1 their tool loses the frozen weights.
    assert set(ours) - set(theirs) == ({"frozen.weight", "frozen.bias"} if stage == 1 else set())
    for key, value in theirs.items():
        assert torch.equal(ours[key].float(), value.float()), key


def other_step(folder: Path, name: str) -> None:
    """The file of step 2 in place of that of step 3."""
    stage = 3 if (folder / "zero_pp_rank_0_mp_rank_00_model_states.pt").exists() else 2
    shutil.copy(OTHER[0] / f"zero{stage}" / "step-2" / name, folder / name)


OTHER: list[Path] = []


@pytest.fixture(autouse=True)
def _other(written: Path) -> None:
    OTHER[:] = [written]


def optim(rank: int) -> str:
    return f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def model(rank: int) -> str:
    return f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def cut(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


def another_run(folder: Path, name: str) -> None:
    """The same step and number of ranks, other weights."""
    content = torch.load(folder / name, weights_only=False)
    content["optimizer_state_dict"]["single_partition_of_fp32_groups"][0].data.add_(0.5)
    torch.save(content, folder / name)


def other_ranks(folder: Path, name: str) -> None:
    content = torch.load(folder / name, weights_only=False)
    content["optimizer_state_dict"]["partition_count"] = 4
    torch.save(content, folder / name)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def evil(folder: Path, name: str) -> None:
    torch.save({"optimizer_state_dict": Evil()}, folder / name)


def foreign(folder: Path, name: str) -> None:
    torch.save({"weights": torch.zeros(3)}, folder / name)


def double(folder: Path, name: str) -> None:
    shutil.copy(folder / name, folder / name.removeprefix("bf16_"))


@pytest.mark.parametrize(
    ("stage", "damage", "name", "message"),
    [
        (2, remove, optim(1), r"1 of 2 optimizer files"),
        (2, remove, optim(0), r"the file of rank 0 like bf16_zero_pp_rank_1.* is missing"),
        (2, remove, "mp_rank_00_model_states.pt", r"is no DeepSpeed checkpoint"),
        (2, cut, optim(1), r"bf16_zero_pp_rank_1\S+ is truncated"),
        (2, cut, "mp_rank_00_model_states.pt", r"mp_rank_00_model_states\.pt is truncated"),
        (2, other_step, optim(1), r"rank_1\S+ is of optimizer step 2, \S+rank_0\S+ of 3: a mixed checkpoint"),
        (
            2,
            other_step,
            "mp_rank_00_model_states.pt",
            r"differs between mp_rank_00_model_states\.pt and bf16_zero",
        ),
        (2, another_run, optim(1), r"differs between .* files of different saves are mixed"),
        (2, other_ranks, optim(1), r"rank_1\S+ was written by 4 ranks, the checkpoint by 2"),
        (2, evil, optim(1), r"bf16_zero_pp_rank_1\S+ holds objects other than tensors"),
        (2, foreign, optim(0), r"bf16_zero_pp_rank_0\S+: file has no field 'optimizer_state_dict'"),
        (2, foreign, "mp_rank_00_model_states.pt", r"model_states\.pt: file has no field 'global_steps'"),
        (2, double, optim(1), r"are of the same rank: a mixed checkpoint"),
        (3, remove, model(1), r"1 of 2 model files"),
        (3, remove, optim(1), r"1 of 2 optimizer files"),
        (3, cut, model(0), r"zero_pp_rank_0\S+ is truncated"),
        (3, other_step, model(1), r"zero_pp_rank_1\S+ is of global_steps 2, zero_pp_rank_0\S+ of 3"),
        (3, other_step, optim(1), r"rank_1\S+ is of optimizer step 2"),
    ],
)
def test_bad_checkpoints(
    copy: Callable[[int], Path], stage: int, damage: Callable[[Path, str], None], name: str, message: str
) -> None:
    folder = copy(stage)
    damage(folder, name)
    with pytest.raises(InputError, match=message):
        read_shards(folder)


def test_shards_of_another_stage(copy: Callable[[int], Path], written: Path) -> None:
    folder = copy(0)
    shutil.copy(written / "zero2" / "step-3" / optim(0), folder)
    with pytest.raises(InputError, match="does not belong to mp_rank_00_model_states"):
        read_shards(folder)
    with pytest.raises(InputError, match="is no DeepSpeed checkpoint"):
        read_shards(folder / "nothing")
