"""A machine without a compiler can train: DeepSpeed is kept from building operators on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

CODE = """
import torch
from glus.training.launch import import_deepspeed, join

join()
layer = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(layer.parameters(), 0.1)
engine, *_ = import_deepspeed().initialize(model=layer, optimizer=optimizer, config={"train_batch_size": 1})
engine.backward(engine(torch.ones(1, 2)).sum())
engine.step()
print("stepped")
"""


def test_nothing_is_compiled(tmp_path: Path) -> None:
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
        "PATH": str(tmp_path / "empty"),
        "CUDA_VISIBLE_DEVICES": "",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
    }
    ended = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.rstrip().endswith("stepped")
    assert not list((tmp_path / "extensions").rglob("*.so"))
