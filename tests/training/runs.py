"""A training run of the tiny model, for tests and, as a script, for tests that kill it.

python runs.py LOG_DIR [--steps N] [--stage N] [--die STEP] ...    under any launcher or none
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script: for `tiny`

from tiny import tiny_glus
from training_samples import tiny_sample

from glus.data.records import Record
from glus.training.config import (
    CheckpointConfig,
    DeepSpeedConfig,
    LoggingConfig,
    LoopConfig,
    OptimizerConfig,
    loop_identity,
)
from glus.training.forward import TrainingSample
from glus.training.launch import Place, join
from glus.training.objective import ContrastiveConfig, Objective
from glus.training.parameters import LoraSettings, add_lora, select_trainable
from glus.training.task import GlusTask
from glus.training.trainer import Trainer

LORA = LoraSettings(dropout=0.3)
SPLIT = {"zero_optimization": {"stage3_param_persistence_threshold": 300}}
"""The tiny model has hardly a parameter that ZeRO-3 would split by default."""


class Samples:
    """Tiny samples by number; `hook` may stand in the way of one."""

    def __init__(self, glus: Any, hook: Any = None) -> None:
        self.rows = glus
        self.hook = hook

    def __getitem__(self, number: int) -> TrainingSample:
        sample = tiny_sample(self.rows, expressions=2, context=1, queries=2, seed=number, video=f"v{number % 3}")
        return self.hook(number, sample) if self.hook is not None else sample


def records() -> list[Record]:
    """Of the tiny samples' videos: two expressions about the same object."""
    return [
        Record("mevis", f"v{video}", str(exp), "x", ("00000", "00001"), Path(), ("7",))
        for video in range(3)
        for exp in range(2)
    ]


def tiny_task(rank: int = 0, hook: Any = None, trainable: str = "released", contrastive: bool = True) -> GlusTask:
    """LoRA with dropout, memory dropout and contrastive draws: everything random that a run has."""
    glus = tiny_glus()
    add_lora(glus.model, LORA)
    select_trainable(glus.model, trainable)  # type: ignore[arg-type]
    return GlusTask(
        glus.model,
        Samples(glus, hook),
        Objective(contrastive=ContrastiveConfig(bank_size=24, negatives=4)),
        {"mevis": records} if contrastive else None,
        memory_dropout=True,
        rank=rank,
    )


def tiny_loop(**changes: Any) -> LoopConfig:
    loop = LoopConfig(
        steps=6,
        batch_size=1,
        grad_accumulation_steps=2,
        workers=0,
        precision="fp32",
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2),
        deepspeed=DeepSpeedConfig(stage=0, bucket_size=10**7),
        checkpoints=CheckpointConfig(every=2, keep=2),
        logging=LoggingConfig(tensorboard=False, progress=False),
    )
    return dataclasses.replace(loop, **changes)


def trainer(log_dir: Path, place: Place, loop: LoopConfig, task: Any = None, **options: Any) -> Trainer:
    task = task or tiny_task(place.rank)
    about = {
        "model": task.model.config.to_dict(),
        "config": {"lora": dataclasses.asdict(LORA), "trainable": "released", "loop": dataclasses.asdict(loop)},
    }
    return Trainer(task, loop, place, log_dir, {"loop": loop_identity(loop)}, about, **options)


TIMES = {"samples_per_second", "step_seconds", "data_seconds", "rss_mb", "gpu_mb"}


def log_lines(log_dir: Path, kind: str = "step") -> list[dict[str, Any]]:
    """The log without what a clock or the machine says."""
    lines = [json.loads(line) for line in (log_dir / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines if line["kind"] == kind]


def weights(task: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in task.module.state_dict().items()}


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("log_dir", type=Path)
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--stage", type=int, default=0)
    p.add_argument("--offload", default="none")
    p.add_argument("--workers", type=int, default=0)
    p.add_argument("--precision", default="fp32")
    p.add_argument("--die", type=int, help="kill the whole process group before this step")
    args = p.parse_args()
    logging.basicConfig(level=logging.INFO)
    place = join()
    loop = tiny_loop(
        steps=args.steps,
        workers=args.workers,
        precision=args.precision,
        deepspeed=DeepSpeedConfig(args.stage, args.offload, 10**7, SPLIT if args.stage == 3 else {}),
    )
    run = trainer(args.log_dir, place, loop)
    plain_step = run.step

    def step(number: int, batches: Any) -> Any:
        if number == args.die and place.is_main:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        return plain_step(number, batches)

    run.step = step  # type: ignore[method-assign]
    run.run()
    with run.engine.whole_weights():
        if place.is_main:
            torch.save(weights(run.task), args.log_dir / "final.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
