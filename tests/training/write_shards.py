"""Run under torchrun: DeepSpeed checkpoints of a small module, all ZeRO stages, with the true weights."""

from __future__ import annotations

import sys
from pathlib import Path

import deepspeed
import torch
from torch import nn

STAGES = (0, 1, 2, 3)


class Small(nn.Module):
    """Sizes that do not divide by the number of ranks, a frozen layer, an unused weight and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.last = nn.Linear(7, 5), nn.Linear(5, 6), nn.Linear(6, 3, bias=False)
        self.unused = nn.Parameter(torch.randn(3))
        self.register_buffer("table", torch.randn(4))
        self.frozen.requires_grad_(False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.last(self.frozen(self.first(values))).float().pow(2).mean()


def settings(stage: int) -> dict[str, object]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": stage > 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 20, "sub_group_size": 30},
    }


def write(stage: int, out: Path) -> None:
    """Checkpoints of steps 2 and 3, and after each the fp32 weights as DeepSpeed itself gathers them."""
    torch.manual_seed(stage)
    module = Small()
    trained = [p for p in module.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=module, config=settings(stage), model_parameters=trained)
    dtype = torch.float32 if stage == 0 else torch.bfloat16
    for step in (1, 2, 3):
        draws = torch.Generator().manual_seed(10 * step + engine.global_rank)
        loss = engine(torch.randn(2, 7, generator=draws).to(dtype))
        engine.backward(loss)
        engine.step()
        if step > 1:
            engine.save_checkpoint(str(out / f"zero{stage}"), tag=f"step-{step}")
    if stage:
        from deepspeed.utils import safe_get_full_fp32_param

        true = {n: safe_get_full_fp32_param(p).clone() for n, p in module.named_parameters() if p.requires_grad}
    else:
        true = {n: p.detach().clone() for n, p in module.named_parameters()}
    if engine.global_rank == 0:
        torch.save(true, out / f"zero{stage}" / "true.pt")


if __name__ == "__main__":
    deepspeed.init_distributed(dist_backend="gloo")
    for number in STAGES:
        write(number, Path(sys.argv[1]))
    # Left to the interpreter's end, the threads of the process group abort the process now and then.
    torch.distributed.destroy_process_group()
