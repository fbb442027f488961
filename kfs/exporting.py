"""Selectors as the original's merged directories hold them (reference kfs.md, 3.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from glus.config import VisionConfig
from glus.modeling.checkpoints import State
from glus.text.tokenizer import GlusTokenizer
from glus.training.released import SHARD_BYTES, Layout, write_layout
from kfs.checkpoints import FP32_PARTS
from kfs.model import RELEASED, SelectorConfig

STOCK_VISION = VisionConfig(pool=1)
"""CLIP as published, which no directory needs to hold."""


def merged_layout(config: SelectorConfig) -> Layout:
    """A merged directory; what the original's says of start and end tokens is set right (defect 17)."""
    rates: dict[str, Any] = {f"spatial_cluster_rate{level}": n for level, n in enumerate(config.merging.spatial)}
    clusters = {"freeze": False, "mm_tune": True, **rates, "temporal_cluster_rate": config.merging.temporal}
    fields = {
        "_name_or_path": "kfs",
        "architectures": ["VISAForCausalLM"],
        "config": {**clusters, "use_cluster": True, "vision_tune": False},
        "mm_use_im_start_end": False,
        "model_type": "ChatUniVi",
        "out_dim": config.out_dim,
    }
    # The projector too: the recorded directory of a bf16 merge has no bias in bf16.
    return Layout(RELEASED, (*FP32_PARTS, "vision.projector."), fields, plain_tokens=True)


def write_merged(
    folder: Path,
    config: SelectorConfig,
    state: State,
    tokenizer: GlusTokenizer,
    dtype: torch.dtype,
    own_tower: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a selector as the original's merge does; arguments as in `glus.training.released.write_layout`."""
    layout = merged_layout(config)
    write_layout(folder, layout, config.language, config.vision, state, tokenizer, dtype, own_tower, shard_bytes)
