"""Killed runs, and what they leave: bit-equal continuation, or a clear refusal."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Samples, log_lines, tiny_loop, tiny_task, trainer, weights
from tiny import tiny_glus

from glus.errors import InputError
from glus.training import logs
from glus.training.checkpointing import Checkpoints, fault_of
from glus.training.config import CheckpointConfig, OptimizerConfig
from glus.training.engine import load_file
from glus.training.launch import Place

SCRIPT = Path(__file__).with_name("runs.py")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit by bit."""
    return set(one) == set(other) and all(
        one[k].dtype == other[k].dtype and one[k].numpy().tobytes() == other[k].numpy().tobytes() for k in one
    )


def start(log_dir: Path, ranks: int, *flags: str) -> tuple[int, str]:
    """`runs.py` on some ranks in one process group, so that it can be killed as a whole: its status and stderr."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    script = f'for r in $(seq {ranks}); do RANK=$((r - 1)) LOCAL_RANK=$((r - 1)) "$@" & done; '
    script += f"s=0; for r in $(seq {ranks}); do wait -n || s=1; done; exit $s"
    command = ["bash", "-c", script, "bash", sys.executable, str(SCRIPT), str(log_dir), *flags]
    env = {**shared, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, env=env, timeout=900)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log folder of an undisturbed run of two processes under ZeRO-2."""
    pytest.importorskip("deepspeed")
    log_dir = tmp_path_factory.mktemp("two ranks")
    status, said = start(log_dir, 2, "--stage", "2")
    assert status == 0, said
    return log_dir


def test_two_ranks_killed_in_the_middle_end_bit_equal(tmp_path: Path, two_ranks: Path) -> None:
    """ZeRO-2 over two processes, dropout and contrastive draws on; D34, D35, D37."""
    status, said = start(tmp_path, 2, "--stage", "2", "--die", "3")
    assert status == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert [line["step"] for line in log_lines(tmp_path)] == [1, 2, 3]  # step 3 is done again
    assert not (tmp_path / "final.pt").exists()
    status, said = start(tmp_path, 2, "--stage", "2")
    assert status == 0, said
    assert "resuming after step 2" in said
    assert log_lines(two_ranks) == log_lines(tmp_path)
    assert len(log_lines(two_ranks)) == 6
    assert same(torch.load(two_ranks / "final.pt"), torch.load(tmp_path / "final.pt"))


def test_two_ranks_that_split_the_weights_give_the_same_losses(tmp_path: Path, two_ranks: Path) -> None:
    """ZeRO-3 against ZeRO-2; the tiny model is split down to 300 elements."""
    status, said = start(tmp_path, 2, "--stage", "3")
    assert status == 0, said
    for mine, theirs in zip(log_lines(tmp_path), log_lines(two_ranks), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert len(list((tmp_path / "checkpoints/step-00000006").glob("*_optim_states.pt"))) == 2


def run_until(step: int, log_dir: Path, place: Place, **changes: Any) -> None:
    """Train and stop before `step` as a killed process does: without a word."""
    run = trainer(log_dir, place, tiny_loop(**changes))
    plain = run.step

    def stop(number: int, batches: Any) -> Any:
        if number == step:
            raise KeyboardInterrupt
        return plain(number, batches)

    run.step = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, place: Place) -> Path:
    """The log folder of an undisturbed run; do not write to it."""
    log_dir = tmp_path_factory.mktemp("whole")
    run = trainer(log_dir, place, tiny_loop())
    run.run()
    torch.save(weights(run.task), log_dir / "final.pt")
    return log_dir


@pytest.mark.parametrize("workers", [0, 2])
def test_one_process_resumes_bit_equal(tmp_path: Path, place: Place, whole: Path, workers: int) -> None:
    """The number of loader workers may change, everything random goes on (D37)."""
    run_until(3, tmp_path, place)
    run = trainer(tmp_path, place, tiny_loop(workers=workers))
    result = run.run()
    assert (result.step, result.finished) == (6, True)
    assert log_lines(tmp_path) == log_lines(whole)
    assert same(weights(run.task), torch.load(whole / "final.pt"))


def test_a_run_in_slices_ends_bit_equal(tmp_path: Path, place: Place, whole: Path) -> None:
    """`max_minutes` stops in good order, in any step, and the same command goes on."""
    slices = 0
    finished = False
    while not finished:
        run = trainer(tmp_path, place, tiny_loop(max_minutes=1e-9))
        finished = run.run().finished
        slices += 1
    assert slices == 6
    assert log_lines(tmp_path) == log_lines(whole)
    assert same(weights(run.task), torch.load(whole / "final.pt"))


def test_dropout_and_draws_matter(tmp_path: Path, place: Place, whole: Path) -> None:
    """The runs above hold random parts: another seed gives other losses."""
    trainer(tmp_path, place, tiny_loop(seed=1, steps=2)).run()
    ours, theirs = log_lines(tmp_path)[:2], log_lines(whole)[:2]
    assert all(a["loss"] != b["loss"] for a, b in zip(ours, theirs, strict=True))


def test_only_the_newest_checkpoints_stay(whole: Path) -> None:
    """And each says what it is of."""
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    facts = json.loads((whole / "checkpoints/step-00000006/trainer.json").read_text())
    assert (facts["step"], facts["world_size"], facts["weight_prefix"]) == (6, 1, "module.model.")


def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_damaged_newest_checkpoint_falls_back(
    tmp_path: Path, place: Place, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """D34: the one before it is taken, and the damaged one is written anew."""
    run_dir = copied(whole, tmp_path)
    newest = run_dir / "checkpoints/step-00000006"
    file = newest / "mp_rank_00_model_states.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    run = trainer(run_dir, place, tiny_loop(checkpoints=CheckpointConfig(every=1, keep=1)))
    run.run()
    assert "step-00000006 is left out: mp_rank_00_model_states.pt is damaged" in caplog.text
    assert same(weights(run.task), torch.load(whole / "final.pt"))
    assert fault_of(newest) is None


@pytest.mark.parametrize("name", ["complete", "rank-0.pt", "mp_rank_00_model_states.pt"])
def test_an_incomplete_checkpoint_is_not_taken(tmp_path: Path, place: Place, whole: Path, name: str) -> None:
    run_dir = copied(whole, tmp_path)
    (run_dir / "checkpoints/step-00000006" / name).unlink()
    run = trainer(run_dir, place, tiny_loop())
    newest = run.checkpoints.newest()
    assert newest is not None
    assert newest.name == "step-00000004"


def test_a_run_with_damaged_checkpoints_only_is_not_started_over(
    tmp_path: Path, place: Place, whole: Path
) -> None:
    """D34: what is left of them stays, and `--no_resume` puts it aside."""
    run_dir = copied(whole, tmp_path)
    folder = run_dir / "checkpoints"
    (folder / "step-00000004/complete").unlink()
    (folder / "step-00000006/rank-0.pt").unlink()
    before = sorted(run_dir.rglob("*"))
    with pytest.raises(InputError, match=r"the newest, step-00000006, rank-0\.pt is missing\..*--no_resume"):
        trainer(run_dir, place, tiny_loop()).run()
    assert sorted(run_dir.rglob("*")) == before
    assert trainer(run_dir, place, tiny_loop(steps=1)).run(resume=False).step == 1
    assert (run_dir / "before-1/checkpoints/step-00000006/complete").is_file()


def test_leftovers_of_a_killed_save_are_no_checkpoint(tmp_path: Path, place: Place, whole: Path) -> None:
    run_dir = copied(whole, tmp_path)
    folder = run_dir / "checkpoints"
    (folder / "step-00000006").rename(folder / ".tmp-step-00000006")
    run = trainer(run_dir, place, tiny_loop())
    run.run()
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000006"]
    assert same(weights(run.task), torch.load(whole / "final.pt"))


def test_another_configuration_is_refused_by_name(tmp_path: Path, place: Place, whole: Path) -> None:
    run_dir = copied(whole, tmp_path)
    changed = tiny_loop(steps=8, optimizer=OptimizerConfig(lr=2e-3, warmup_steps=2))
    with pytest.raises(InputError) as error:
        trainer(run_dir, place, changed).run()
    assert "loop.steps 8 instead of 6; loop.optimizer.lr 0.002 instead of 0.001" in str(error.value)
    unchanged = tiny_loop(workers=1, checkpoints=CheckpointConfig(every=1, keep=1))
    assert trainer(run_dir, place, unchanged).run().step == 6  # what does not change the numbers may change


def test_another_model_at_the_same_path_is_refused(tmp_path: Path, place: Place, whole: Path) -> None:
    """And a moved data folder is not."""
    run = trainer(whole, place, tiny_loop())
    newest = run.checkpoints.newest()
    assert newest is not None
    file = Path(shutil.copytree(newest, tmp_path / newest.name)) / "trainer.json"
    stored = json.loads(file.read_text())
    stored["identity"]["data"] = {"dataset_dir": "before"}
    file.write_text(json.dumps(stored))
    identity = {**run.facts.identity, "data": {"dataset_dir": "after"}}
    facts = dataclasses.replace(run.facts, identity=identity)
    assert Checkpoints(whole, CheckpointConfig(), facts, place).check(file.parent) == 6
    stored["about"]["model"]["language"]["rope_theta"] = 5.0
    file.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"model\.language\.rope_theta .* instead of 5\.0"):
        Checkpoints(whole, CheckpointConfig(), facts, place).check(file.parent)


def test_another_number_of_ranks_is_refused(place: Place, whole: Path) -> None:
    run = trainer(whole, place, tiny_loop())
    facts = dataclasses.replace(run.facts, world_size=4)
    checkpoints = Checkpoints(whole, CheckpointConfig(), facts, place)
    newest = checkpoints.newest()
    assert newest is not None
    with pytest.raises(InputError, match="was written by 1 ranks, this run has 4"):
        checkpoints.check(newest)


def test_another_task_is_refused(place: Place, whole: Path) -> None:
    task = tiny_task()
    task.name = "matching"
    with pytest.raises(InputError, match="is of the task 'glus', this run is 'matching'"):
        trainer(whole, place, tiny_loop(), task).run()


def test_a_log_is_cut_behind_the_restored_step(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    lines = [json.dumps({"kind": "step", "step": step}) for step in (1, 2, 3)]
    file.write_text("\n".join([*lines, '{"kind": "st']))
    logs.truncate(file, 2)
    assert file.read_text().splitlines() == lines[:2]


def test_no_resume_starts_anew_and_keeps_the_earlier_run(tmp_path: Path, place: Place) -> None:
    trainer(tmp_path, place, tiny_loop()).run()
    result = trainer(tmp_path, place, tiny_loop(steps=2)).run(resume=False)
    assert result.step == 2
    assert [line["step"] for line in log_lines(tmp_path)] == [1, 2]
    assert len(log_lines(tmp_path / "before-1")) == 6
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000002"]


def test_samples_are_drawn_again_alike() -> None:
    """What resuming and replaying rest on."""
    one, two = (Samples(tiny_glus())[7] for _ in range(2))
    assert torch.equal(one.sam_pixels, two.sam_pixels)
    assert one.rows == two.rows


class Evil:
    """Pickles to a call."""

    def __reduce__(self) -> Any:
        return os.getenv, ("HOME",)


def test_checkpoint_files_are_not_unpickled(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    torch.save({"module": Evil()}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt cannot be read as a checkpoint"):
        load_file(tmp_path / "x.pt")
