"""Ways to run the same model faster, or plainer: the language model's attention, compiled parts.

Neither changes what is computed, only its rounding, as another device would.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from glus.errors import InputError
from glus.modeling.glus import GLUSModel

ATTENTION = ("sdpa", "eager", "flash_attention_2")
"""torch's fused attention, plain products, the flash-attn package."""
INSTALL = "pip install flash-attn --no-build-isolation"


def check_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise an `InputError` unless the language model can attend in this way here."""
    if name not in ATTENTION:
        raise InputError(f"unknown attention {name!r}; choose one of {', '.join(ATTENTION)}")
    if name != "flash_attention_2":
        return
    if importlib.util.find_spec("flash_attn") is None:
        raise InputError(f"attention flash_attention_2 needs flash-attn: {INSTALL}; sdpa needs nothing")
    if device.type != "cuda" or dtype == torch.float32:
        raise InputError("attention flash_attention_2 works on a GPU in bf16 or fp16 only; use sdpa")


def compile_parts(model: GLUSModel, backend: str = "inductor") -> None:
    """Have torch compile what is run over and over at few shapes; it happens when each is first run.

    CLIP's layers (which share one compilation), SAM-2's image encoder, and what stands around attention in the
    language model's layers. Not attention itself, which is fused already; nor the memory attention and the mask
    decoder, whose shapes change with the number of memories and expressions. Results outlive the next call, so
    they are not left in the static buffers of CUDA graphs.
    """
    how: dict[str, Any] = {"backend": backend}
    for layer in model.vision.tower.encoder.layers:
        layer.compile(**how)
    model.sam.image_encoder.compile(**how)
    for layer in model.language.decoder.layers:
        for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            part.compile(**how)  # type: ignore[operator]
