"""Checkpoint folders of every kind, written from a tiny model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import clip_config, clip_state, released_config, released_state

from glus.api import GLUS

State = dict[str, torch.Tensor]
SUFFIX = {"bin": "pytorch_model", "safetensors": "model"}


def write_weights(folder: Path, state: Mapping[str, torch.Tensor], kind: str = "bin", shards: int = 1) -> None:
    """One file, or shards with an index as transformers writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    keys, stem = sorted(state), SUFFIX[kind]
    names = (
        [f"{stem}.{kind}"]
        if shards == 1
        else [f"{stem}-{i + 1:05d}-of-{shards:05d}.{kind}" for i in range(shards)]
    )
    where = {}
    for number, name in enumerate(names):
        part = {key: state[key].contiguous() for key in keys[number::shards]}
        where.update(dict.fromkeys(part, name))
        if kind == "bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, {"format": "pt"})
    if shards > 1:
        size = sum(v.numel() * v.element_size() for v in state.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_clip(folder: Path, glus: GLUS, kind: str = "bin") -> Path:
    """A published CLIP model: both towers, nested config."""
    write_weights(folder, clip_state(glus.model), kind)
    write_json(folder / "config.json", clip_config(glus.model))
    return folder


def write_released(
    folder: Path,
    glus: GLUS,
    kind: str = "bin",
    shards: int = 2,
    with_clip: bool = False,
    state: State | None = None,
) -> Path:
    """A released GLUS directory; CLIP apart unless asked for."""
    write_weights(folder, state if state is not None else released_state(glus.model, with_clip), kind, shards)
    write_json(folder / "config.json", released_config(glus.model))
    glus.tokenizer.save(folder)
    return folder


def write_lisa(folder: Path, glus: GLUS) -> Path:
    """LISA-7B-v1: the language model, a [SEG] head of its own, SAM version 1."""
    state = {k: v for k, v in released_state(glus.model).items() if "visual_model" not in k}
    state["model.text_hidden_fcs.0.0.weight"] = torch.full_like(state["model.text_hidden_fcs.0.0.weight"], 7.0)
    for key in ("image_encoder.pos_embed", "prompt_encoder.no_mask_embed.weight", "mask_decoder.iou_token.weight"):
        state[f"model.visual_model.{key}"] = torch.ones(3, 4)
    write_weights(folder, state, "bin", 2)
    write_json(folder / "config.json", {**released_config(glus.model), "architectures": ["LISAForCausalLM"]})
    glus.tokenizer.save(folder)
    return folder


def sam2_state(glus: GLUS) -> State:
    return {k.removeprefix("sam."): v.clone() for k, v in glus.model.state_dict().items() if k.startswith("sam.")}
