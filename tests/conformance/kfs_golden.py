"""Rebuild the tiny golden selector (conformance kfs/README.md) with our own modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glus_golden import language_sizes, load_weights_module, vision_sizes

from glus.modeling.checkpoints import load_state
from glus.text.tokenizer import GlusTokenizer
from glus.training.parameters import LoraSettings, add_lora
from kfs.merging import MergingConfig, Noise
from kfs.model import RELEASED, SelectorConfig, SelectorModel
from kfs.prompts import make_tokenizer
from kfs.training import select_trainable


def load(root: Path, name: str) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """`name.json` and `name.npz` of the set; the first is empty where there is none."""
    spec = root / f"{name}.json"
    return json.loads(spec.read_text()) if spec.is_file() else {}, np.load(root / f"{name}.npz")


def golden_tensors(root: Path, shapes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights of the golden model under the original's names, adapters too if they are among `shapes`."""
    spec = json.loads((root / "tiny_model.json").read_text())
    state = load_weights_module(root).build_state(shapes, spec["weight_seed"], spec["overrides"])
    return {key: torch.from_numpy(value) for key, value in state.items()}


def replay(draws: np.ndarray) -> Noise:
    """Noise that hands out recorded draws in call order."""
    left = torch.from_numpy(draws.reshape(-1))

    def take(shape: tuple[int, int]) -> torch.Tensor:
        nonlocal left
        taken, left = left[: shape[0] * shape[1]], left[shape[0] * shape[1] :]
        return taken.reshape(shape)

    return take


def selector_config(root: Path) -> SelectorConfig:
    """Our configuration from the golden `tiny_model.json`."""
    spec = json.loads((root / "tiny_model.json").read_text())
    llm, clip = spec["chatunivi_config"], spec["clip_vision_config"]
    return SelectorConfig(
        language=language_sizes(llm, spec["shapes"]["model.embed_tokens.weight"][0]),
        vision=vision_sizes(clip, llm["mm_vision_select_layer"], 1),
        merging=MergingConfig(
            tuple(llm["config"][f"spatial_cluster_rate{level}"] for level in range(3)),
            llm["config"]["temporal_cluster_rate"],
        ),
        out_dim=spec["out_dim"],
    )


def golden_selector(root: Path) -> SelectorModel:
    """Our model with the golden weights, loaded through the original's key table."""
    spec = json.loads((root / "tiny_model.json").read_text())
    model = SelectorModel(selector_config(root), spec["score_token_id"])
    load_state(model, RELEASED.rename(golden_tensors(root, spec["shapes"]), "golden"))
    return model.eval()


def add_golden_lora(model: SelectorModel, root: Path) -> None:
    """Adapters with the golden weights, and what trains in the original."""
    spec = json.loads((root / "train_step.json").read_text())
    lora = spec["lora"]
    targets = tuple(lora["targets"].split(","))
    add_lora(model, LoraSettings(lora["r"], lora["alpha"], lora["dropout_in_this_fixture"], targets))
    weights = RELEASED.rename(golden_tensors(root, spec["lora_shapes"]), "golden adapters")
    own = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert own == weights.keys()
    model.load_state_dict(weights, strict=False)
    select_trainable(model)


def golden_tokenizer(root: Path, glus: Path) -> GlusTokenizer:
    """The selector's tokenizer: the pieces of the set `glus`, the added tokens of this one."""
    merged = json.loads((root / "merge.json").read_text())
    content = (glus / "tokenizer.model").read_bytes()
    return make_tokenizer(content, merged["added_tokens"], merged["tokenizer_config"]["legacy"])
