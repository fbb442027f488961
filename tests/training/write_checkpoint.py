"""Run in a process of its own: a run's folder with two checkpoints, and what the model with adapters computes.

Arguments: folder, precision, ZeRO stage.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_config, tiny_glus
from training_samples import tiny_sample

from glus.training.checkpointing import Best, Checkpoints, RunFacts
from glus.training.config import (
    CheckpointConfig,
    DeepSpeedConfig,
    LoopConfig,
    ModelSource,
    OptimizerConfig,
    TrainConfig,
)
from glus.training.engine import Engine
from glus.training.forward import TrainingForward
from glus.training.launch import join
from glus.training.parameters import LoraSettings, add_lora, select_trainable
from glus.training.task import GlusTask, to_device


def main(out: Path, precision: Any, stage: int) -> None:
    glus = tiny_glus(tiny_config(memory_dropout=0.0))
    glus.tokenizer.save(out / "tokenizer")
    lora = LoraSettings(r=4, alpha=8, dropout=0.0)
    add_lora(glus.model, lora)
    select_trainable(glus.model, "released")
    samples = [tiny_sample(glus)]
    optimizer = OptimizerConfig(lr=3e-2, warmup_steps=0)
    loop = LoopConfig(
        steps=4,
        precision=precision,
        optimizer=optimizer,
        deepspeed=DeepSpeedConfig(stage),
        grad_accumulation_steps=1,
    )
    config = TrainConfig(ModelSource(version="tiny"), lora=lora, loop=loop)
    place = join()
    task = GlusTask(glus.model, samples)
    engine = Engine(task.module, loop, place, glus.model.finish_loading)
    about = {"config": dataclasses.asdict(config), "model": glus.model.config.to_dict()}
    facts = RunFacts(task.name, place.world, {}, about)
    checkpoints = Checkpoints(out, CheckpointConfig(), facts, place)
    task.train_mode()
    for step in range(1, loop.steps + 1):
        loss, _ = engine.forward(to_device(samples, place.device))
        engine.backward(loss)
        engine.step(optimizer.lr)
        if step > 2:
            checkpoints.save(engine, task, step, Best(3, 0.5))
    with engine.whole_weights(), torch.no_grad():
        forward = TrainingForward(glus.model.eval())
        hidden, _ = forward.read_segs(samples)
        logits = glus.model.language.lm_head(hidden)
        torch.save({"logits": logits, "low_res": forward(samples).low_res[0]}, out / "computed.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
