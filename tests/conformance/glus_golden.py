"""Rebuild the tiny golden model (conformance glus/README.md, section 1) with our own modules."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from glus.config import Behaviour, LanguageConfig, ModelConfig, Sam2Config, VisionConfig
from glus.modeling import checkpoints
from glus.modeling.glus import GLUSModel


def load_weights_module(root: Path) -> ModuleType:
    """`weights.py` beside the fixture folders: the generator of deterministic tensors."""
    spec = importlib.util.spec_from_file_location("golden_weights", root.parent / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def language_sizes(llm: dict[str, Any], vocab_size: int) -> LanguageConfig:
    """From the configuration of a golden LLaMA; some sets leave the rotary base at its default."""
    return LanguageConfig(
        hidden_size=llm["hidden_size"],
        num_layers=llm["num_hidden_layers"],
        num_heads=llm["num_attention_heads"],
        intermediate_size=llm["intermediate_size"],
        vocab_size=vocab_size,
        max_positions=llm["max_position_embeddings"],
        rms_norm_eps=llm["rms_norm_eps"],
        hidden_act=llm["hidden_act"],
        **{key: llm[key] for key in ("rope_theta",) if key in llm},
    )


def vision_sizes(clip: dict[str, Any], select_layer: int, pool: int) -> VisionConfig:
    """From the configuration of a golden CLIP."""
    return VisionConfig(
        hidden_size=clip["hidden_size"],
        num_layers=clip["num_hidden_layers"],
        num_heads=clip["num_attention_heads"],
        intermediate_size=clip["intermediate_size"],
        image_size=clip["image_size"],
        patch_size=clip["patch_size"],
        hidden_act=clip["hidden_act"],
        layer_norm_eps=clip["layer_norm_eps"],
        select_layer=select_layer,
        pool=pool,
    )


def model_config(spec: dict[str, Any], behaviour: Behaviour | None = None) -> ModelConfig:
    """Our configuration from the golden `spec.json`."""
    llm, clip, sam = spec["llm"], spec["clip_vision"], spec["sam2"]
    trunk, attention, memory = sam["image_encoder"]["trunk"], sam["memory_attention"], sam["memory_encoder"]
    decoder = sam["mask_decoder"]
    return ModelConfig(
        language=language_sizes(llm, llm["vocab_size"]),
        vision=vision_sizes(
            clip,
            clip["select_layer"],
            spec["visual_tokens"]["patches"] // spec["visual_tokens"]["tokens_per_image"],
        ),
        sam2=Sam2Config(
            image_size=sam["image_size"],
            trunk_dim=trunk["embed_dim"],
            trunk_heads=trunk["num_heads"],
            stages=tuple(trunk["stages"]),
            windows=tuple(trunk["window_spec"]),
            global_blocks=tuple(trunk["global_att_blocks"]),
            background_size=trunk["window_pos_embed_bkg_spatial_size"][0],
            hidden_size=sam["image_encoder"]["neck"]["d_model"],
            memory_dim=memory["out_dim"],
            memory_slots=sam["num_maskmem"],
            memory_layers=attention["num_layers"],
            memory_ffn=attention["layer"]["dim_feedforward"],
            memory_dropout=attention["layer"]["dropout"],
            fuser_layers=memory["fuser"]["num_layers"],
            decoder_depth=decoder["transformer_depth"],
            decoder_heads=decoder["transformer_heads"],
            decoder_ffn=decoder["transformer_mlp_dim"],
            iou_hidden=decoder["iou_head_hidden_dim"],
            prompt_mask_channels=sam["prompt_encoder"]["mask_in_chans"],
        ),
        behaviour=behaviour or Behaviour(),
    )


def golden_state(root: Path, seg_scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The released-layout state of the golden model, CLIP included; `seg_scale` is a case's `lm_scale`."""
    spec = json.loads((root / "spec.json").read_text())
    manifest = json.loads((root / "manifest_tiny.json").read_text())
    shapes = {**manifest["saved"], **manifest["vision_tower_not_saved"]}
    buffers = {k: shapes.pop(k) for k in manifest["computed_buffers"]}
    rows = [dict(r) for r in spec["rows"]]
    for row in rows:
        if row["key"] == "lm_head.weight":
            row["scale"] = row["scale"] * seg_scale
    weights = load_weights_module(root)
    state = weights.build_state(shapes, spec["seed"], spec["overrides"], rows)
    tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}
    for key, shape in buffers.items():
        theta, count = spec["llm"]["rope_theta"], shape[0]
        tensors[key] = theta ** (-torch.arange(count, dtype=torch.float32) / count)
    return tensors


def golden_model(root: Path, seg_scale: float = 1.0, behaviour: Behaviour | None = None) -> GLUSModel:
    """Our model with the golden weights, loaded through the released key table."""
    spec = json.loads((root / "spec.json").read_text())
    model = GLUSModel(model_config(spec, behaviour), seg_id=spec["token_ids"]["[SEG]"])
    checkpoints.load_state(model, checkpoints.from_released(golden_state(root, seg_scale)))
    return model.eval()
