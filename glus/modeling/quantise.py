"""The language model's weights in 8 or 4 bits, by bitsandbytes (reference glus.md 7.6), to fit a smaller GPU.

Only the linear maps inside the decoder's layers: nine tenths of a 7B model. Embeddings, output head, CLIP, the
[SEG] head and SAM-2 keep their precision. Masks differ from those of whole weights, with 4 bits more than with 8.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from glus.errors import InputError
from glus.modeling.language import LanguageModel

OUTLIERS = 6.0  # activations above it are multiplied in whole precision, as LLM.int8 proposes
INSTALL = 'pip install -e ".[quant]"'


def check_bits(bits: int | None) -> None:
    """Raise an `InputError` unless weights of `bits` bits can be had here; None: as they are."""
    if bits is None:
        return
    if bits not in (4, 8):
        raise InputError(f"the language model's weights may have 4 or 8 bits, found {bits!r}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"weights of {bits} bits need bitsandbytes: {INSTALL}")


def quantise(language: LanguageModel, bits: int, device: torch.device) -> None:
    """Turn the decoder's linear maps into `bits`-bit ones on `device`, one at a time; the rest stays where it is.

    4 bits are nf4 with double quantisation, 8 bits LLM.int8; sums are made in the dtype of the weights.
    """
    check_bits(bits)
    make = _maker(bits)
    for layer in language.decoder.layers:
        for name, module in [*layer.named_modules()]:
            if isinstance(module, nn.Linear):
                parent, _, attribute = name.rpartition(".")
                setattr(layer.get_submodule(parent), attribute, make(module, device))


def quantised(language: LanguageModel) -> bool:
    """Whether its weights have 4 or 8 bits."""
    return any(parameter.dtype in (torch.int8, torch.uint8) for parameter in language.parameters())


def _maker(bits: int) -> Callable[[nn.Linear, torch.device], nn.Module]:
    import bitsandbytes

    def make(linear: nn.Linear, device: torch.device) -> nn.Module:
        shape: dict[str, Any] = {"bias": linear.bias is not None, "device": "meta"}  # weights follow
        shape.update(input_features=linear.in_features, output_features=linear.out_features)
        made: nn.Module
        if bits == 8:
            made = bitsandbytes.nn.Linear8bitLt(**shape, has_fp16_weights=False, threshold=OUTLIERS)
            made.weight = bitsandbytes.nn.Int8Params(linear.weight.data, False, has_fp16_weights=False)
        else:
            stored: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
            made = bitsandbytes.nn.Linear4bit(**shape, **stored, compute_dtype=linear.weight.dtype)
            made.weight = bitsandbytes.nn.Params4bit(linear.weight.data, False, **stored, module=made)
        made.bias = linear.bias
        return made.requires_grad_(False).to(device).train(linear.training)  # bitsandbytes converts on the way

    return make
