"""The configuration of a run, its options, the learning rate, and who a process is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from glus.errors import InputError
from glus.training import launch
from glus.training.config import (
    DeepSpeedConfig,
    LoopConfig,
    ModelSource,
    OptimizerConfig,
    TrainConfig,
    identity,
    merge,
    read_content,
    train_config,
)
from glus.training.flags import DEAD, given, overrides
from glus.training.objective import LossRules
from glus.training.schedule import learning_rate


def config_of(*argv: str, **content: Any) -> TrainConfig:
    return train_config(merge({"model": {"version": "x"}, **content}, overrides(given(argv))), "test")


def test_defaults_are_the_released_recipe() -> None:
    """Reference glus.md 6.1, with its defects repaired."""
    config = config_of()
    loop = config.loop
    assert (loop.precision, loop.batch_size, loop.grad_accumulation_steps, loop.steps) == ("bf16", 2, 10, 5000)
    assert (loop.optimizer.lr, loop.optimizer.beta1, loop.optimizer.beta2) == (3e-4, 0.9, 0.95)
    assert (loop.optimizer.weight_decay, loop.optimizer.grad_clip, loop.optimizer.warmup_steps) == (0, 1.0, 100)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (8, 16, 0.05)
    assert (loop.deepspeed.stage, loop.deepspeed.bucket_size) == (2, 500_000_000)
    assert config.objective.rules == LossRules.preset("corrected")
    assert not config.model.memory_dropout


def test_released_brings_the_defects_back_but_does_not_insist() -> None:
    """Section 9, level (c): summed masks, the contrastive rules, dropout in memory attention, the rate quirk."""
    config = config_of("--compat", "released")
    assert config.objective.rules == LossRules.preset("released")
    assert config.loop.optimizer.first_step == "full"
    assert config.model.memory_dropout
    mine = config_of("--compat", "released", loop={"optimizer": {"first_step": "warmup"}})
    assert mine.loop.optimizer.first_step == "warmup"


def test_options_of_the_original_reach_their_fields() -> None:
    config = config_of(
        *("--refer_video_seg_data", "mevis", "--sample_rates", "1", "--lora_target_modules", "q_proj, k_proj"),
        *("--epochs", "30", "--steps_per_epoch", "100", "--lr", "1e-4", "--use_contrastive_loss"),
        *("--not_use_mem_bank", "--no_eval", "--no-gradient_checkpointing", "--set", "loop.deepspeed.stage=3"),
        *("--set", "loop.deepspeed.extra={a: {b: 1}}"),
    )
    assert (config.data.refer_video_seg_data, config.data.sample_rates) == ("mevis", "1")
    assert config.lora.targets == ("q_proj", "k_proj")
    assert (config.loop.steps, config.loop.optimizer.lr) == (3000, 1e-4)
    assert config.use_contrastive_loss
    assert not config.use_mem_bank
    assert not config.gradient_checkpointing
    assert config.loop.deepspeed == DeepSpeedConfig(stage=3, extra={"a": {"b": 1}})


def test_the_recipes_of_the_scripts_keep_their_options_apart() -> None:
    """D39: `--exp_name` given twice takes the last, a stray word is refused."""
    assert given(["--exp_name", "a", "--exp_name", "b"]).exp_name == "b"
    with pytest.raises(SystemExit) as error:
        given(["--exp_name", "a", r"\-"])
    assert error.value.code == 2


@pytest.mark.parametrize("name", sorted(DEAD))
def test_dead_options_are_refused_with_a_word_on_why(name: str) -> None:
    for argv in ([f"--{name}"], [f"--{name}", "value"], [f"--{name}=value"]):
        with pytest.raises(InputError, match=f"--{name} is not an option here: "):
            given(argv)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--steps", "5", "--epochs", "2"], "give --steps, or --epochs and --steps_per_epoch"),
        (["--epochs", "0"], "--epochs and --steps_per_epoch must be at least 1, found 0 and 500"),
        (["--epochs", "-2", "--steps_per_epoch", "-3"], "must be at least 1, found -2 and -3"),
        (["--set", "loop"], "--set needs FIELD=VALUE, found 'loop'"),
        (["--set", "loop.stepz=3"], "unknown key 'stepz'"),
        (["--set", "loop.steps={"], "not valid YAML"),
        (["--set", "compat.x=1", "--compat", "released"], "compat is a value, not a group of fields"),
        (["--lr", "0"], "optimizer.lr must be above 0"),
        (["--beta2", "1"], "must lie in 0..1"),
        (["--batch_size", "0"], "loop.batch_size must be at least 1"),
        (["--zero_stage", "4"], "deepspeed.stage must be 0, 1, 2 or 3"),
        (["--zero_stage", "0"], "loop.precision bf16 keeps fp32 masters in ZeRO's optimizer"),
        (["--precision", "fp8"], "precision must be one of"),
        (["--lora_target_modules", "w"], "lora.targets must be some of"),
        (["--set", "model.sizes=y"], "give model.version .* or model.sizes"),
        (["--set", "loop.checkpoints.keep=0"], "checkpoints need every and keep from 1"),
        (["--set", "loop.deepspeed={stage: 0, offload: cpu}"], "offload cpu needs deepspeed.stage 1, 2 or 3"),
    ],
)
def test_bad_options_name_the_field(argv: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        config_of(*argv)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text, words in (("[1]", "expected a mapping"), ("a: {", "not valid YAML")):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            read_content(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_content(tmp_path / "none.yaml")


def test_an_exponent_without_point_is_a_number() -> None:
    """YAML 1.1 reads 3e-4 as text."""
    assert config_of("--set", "loop.optimizer.lr=3e-4").loop.optimizer.lr == 3e-4


def test_what_decides_the_numbers_is_the_identity() -> None:
    config = config_of()
    same = dataclasses.replace(config, gradient_checkpointing=False, loop=LoopConfig(workers=7, max_minutes=3))
    other = dataclasses.replace(config, model=ModelSource("y"))
    assert identity(config) == identity(same)
    assert identity(config) != identity(other)


def test_the_rate_starts_low_and_the_last_step_still_learns() -> None:
    """D36: the original's first step has the whole rate."""
    rates = [learning_rate(OptimizerConfig(lr=1.0, warmup_steps=4), step, 12) for step in range(1, 13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == [1 - i / 8 for i in range(8)]
    assert learning_rate(OptimizerConfig(lr=1.0, warmup_steps=0), 1, 5) == 1.0


def test_the_rate_of_the_original() -> None:
    """6.1: step 1 at the whole rate, step 2 at 0, step n at (n - 2) / 100, then (T - (n - 2)) / (T - 100)."""
    config = OptimizerConfig(lr=3e-4, first_step="full")
    wanted = {1: 1.0, 2: 0.0, 3: 0.01, 102: 1.0, 103: 2899 / 2900, 3000: 2 / 2900}
    assert {step: learning_rate(config, step, 3000) / 3e-4 for step in wanted} == pytest.approx(wanted)


def test_cosine_and_constant() -> None:
    cosine = OptimizerConfig(lr=1.0, warmup_steps=0, decay="cosine", final=0.1)
    rates = [learning_rate(cosine, step, 100) for step in (1, 51, 100)]
    assert rates[:2] == pytest.approx([1.0, 0.55])
    assert 0.1 < rates[2] < 0.102
    constant = OptimizerConfig(lr=1.0, warmup_steps=2, decay="constant")
    assert [learning_rate(constant, step, 9) for step in (1, 2, 9)] == [0.5, 1.0, 1.0]


def test_a_process_without_launcher_is_rank_0_of_1() -> None:
    environ: dict[str, str] = {}
    launch.fill_environment(environ)
    assert [environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["0", "1", "0"]


def test_srun_says_who_a_process_is() -> None:
    """D35: the rank is that among all nodes."""
    step = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "40001"}
    environ = {**step, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}
    launch.fill_environment(environ)
    found = [environ[name] for name in launch.VARIABLES]
    assert found == ["9", "16", "1", "10.0.0.7", "20001"]
    with pytest.raises(InputError, match="export MASTER_ADDR"):
        launch.fill_environment(dict(step))
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}  # sbatch without srun
    launch.fill_environment(batch)
    assert batch["WORLD_SIZE"] == "1"


def test_half_of_a_launcher_is_refused() -> None:
    with pytest.raises(InputError, match="not LOCAL_RANK, MASTER_ADDR"):
        launch.fill_environment({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"})


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"training needs deepspeed: pip install -e \"\.\[train\]\""):
        launch.import_deepspeed()
