"""Adapter names, shapes and scaling of the recorded training model (glus/README.md, 2.9)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from glus_golden import model_config

from glus.modeling.glus import GLUSModel
from glus.modeling.keys import RELEASED
from glus.training.parameters import LoraSettings, add_lora, fold_lora

pytest.importorskip("peft")

PREFIX = "base_model.model."


def test_a_recorded_training_checkpoint_becomes_ours(golden: Callable[[str], Path]) -> None:
    """Its keys, without peft's prefix and under our names, are those of our model with LoRA."""
    root = golden("glus")
    recorded = json.loads((root / "manifest_tiny_lora_training.json").read_text())
    spec = json.loads((root / "spec.json").read_text())
    shapes = {RELEASED.to_own(k.removeprefix(PREFIX)): tuple(v) for k, v in recorded["keys"].items()}
    shapes.pop(None, None)  # rotary frequencies
    targets = {RELEASED.to_own(f"{target}.weight") for target in recorded["targets"]}
    rank = next(shape[0] for key, shape in shapes.items() if key and "lora_A" in key)
    lora = LoraSettings(r=rank)
    assert lora.scaling == recorded["scaling"]
    model = GLUSModel(model_config(spec), seg_id=spec["token_ids"]["[SEG]"])
    plain = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    add_lora(model, lora)
    ours = {}
    for key, value in model.state_dict().items():
        if ".base_layer." in key:  # peft now; the recorded version left the matrix its name
            key = key.replace(".base_layer.", ".")
            assert key in targets
        ours[key] = tuple(value.shape)
    assert ours == shapes
    adapted = fold_lora({key: torch.zeros(shape) for key, shape in shapes.items() if key}, recorded["scaling"])
    assert {key: tuple(value.shape) for key, value in adapted.items()} == plain
