"""scripts/train_tiny.sh from the first stage to the exported model, one step each."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from glus.api import GLUS

pytest.importorskip("deepspeed")
ROOT = Path(__file__).resolve().parents[2]
STAGES = ("masks", "search", "memory", "sight", "stills", "language", "joined", "train")


def test_all_stages(tmp_path: Path) -> None:
    steps = {f"STEPS_{stage.upper()}": "1" for stage in STAGES}
    environment = {**os.environ, **steps, "OUT_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(ROOT / "scripts" / "train_tiny.sh"), "--batch_size", "1"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.rstrip().endswith(str(tmp_path / "train" / "model"))
    models = {stage: GLUS.from_pretrained(tmp_path / stage / "model") for stage in STAGES}

    def same(one: str, other: str, name: str) -> bool:
        first, second = (models[stage].model.state_dict()[name] for stage in (one, other))
        return bool(np.array_equal(first.float().numpy(), second.float().numpy()))

    decoder, word, sight = (
        "sam.sam_mask_decoder.iou_token.weight",
        "language.lm_head.weight",
        "vision.projector.weight",
    )
    assert same("joined", "memory", decoder)
    assert same("joined", "language", word)
    assert same("joined", "sight", sight), "the language side leaves the tower alone"
    assert not any(same("joined", "train", name) for name in (decoder, word, sight))
    out = models["train"].segment(np.zeros((2, 64, 96, 3), np.uint8), ["the red circle"])
    assert out.masks.shape == (1, 2, 64, 96)
