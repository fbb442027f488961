"""What the inference benchmarks work on: a model of random weights, a clip, and sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from glus.api import DTYPES
from glus.config import Behaviour, ModelConfig, load_yaml
from glus.inference.queries import Query
from glus.modeling.glus import GLUSModel
from glus.modeling.multimodal import MultimodalModel
from glus.text.tokenizer import GlusTokenizer

Model = TypeVar("Model", bound=MultimodalModel)
ROOT = Path(__file__).resolve().parents[1]
WORDS = [
    "the",
    "a",
    "red",
    "grey",
    "small",
    "dog",
    "car",
    "left",
    "that",
    "which",
    "moves",
    "turns",
    "stays",
    "behind",
]


def build(size: str, device: str, precision: str) -> tuple[GLUSModel, GlusTokenizer]:
    """A model of random weights, made on the device."""
    tokenizer = GlusTokenizer.from_folder(ROOT / "checkpoints" / "glus-tiny")
    if size == "7b":
        config = ModelConfig(behaviour=Behaviour(seg_decision="always"))
    else:
        config = load_yaml(ModelConfig, ROOT / "configs" / "glus_tiny.yaml")
        language = dataclasses.replace(config.language, vocab_size=len(tokenizer))
        behaviour = dataclasses.replace(config.behaviour, seg_decision="always")
        config = dataclasses.replace(config, language=language, behaviour=behaviour)
    return random_model(config, tokenizer, device, DTYPES[precision]), tokenizer


def random_model(config: ModelConfig, tokenizer: GlusTokenizer, device: str, dtype: torch.dtype) -> GLUSModel:
    """Weights large enough that every part shows in the masks."""
    return random_weights(lambda: GLUSModel(config, tokenizer.seg_id), device, dtype)


def random_weights(make: Callable[[], Model], device: str, dtype: torch.dtype) -> Model:
    """A model filled where it is to be; nothing of it lies on another device."""
    with torch.device("meta"):
        model = make()
    model = model.to(dtype).to_empty(device=device).eval()
    dice = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if tensor.dim() < 2:
                tensor.fill_(_constant(name))
            else:
                tensor.normal_(generator=dice).mul_(_scale(name, tensor))
    model.finish_loading()
    return model


def _constant(name: str) -> float:
    if name.endswith("bias"):
        return 0.0
    return 0.1 if name.endswith("gamma") else 1.0


def _scale(name: str, tensor: torch.Tensor) -> float:
    """Larger in SAM-2's part, and rounding would grow from memory to memory until the sides differ."""
    calm = name.startswith("sam.") and "sam_mask_decoder" not in name
    if "embed" in name or "token" in name or "gaussian" in name:
        return 0.3 if calm else 0.5
    fan_in = tensor.shape[0] if "output_upscaling" in name else tensor[0].numel()
    return float((0.7 if calm else 2.0 if "seg_head" in name else 1.2) / fan_in**0.5)


class MadeUpClip:
    """A few coloured boxes that cross a textured background; frames are drawn when they are asked for."""

    fps = Fraction(25)

    def __init__(self, frames: int, height: int, width: int) -> None:
        dice = np.random.default_rng(0)
        coarse = dice.integers(0, 160, (height // 20 + 1, width // 20 + 1, 3))
        self._background = np.kron(coarse, np.ones((20, 20, 1)))[:height, :width].astype(np.uint8)
        self._boxes = [(dice.integers(80, 256, 3), int(dice.integers(0, height * 2 // 3))) for _ in range(4)]
        self.names = [f"{index:05d}" for index in range(frames)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (height, width, 3)."""
        frame = self._background.copy()
        height, width = frame.shape[:2]
        for number, (colour, top) in enumerate(self._boxes):
            left = (number * width // 5 + 7 * index * (1 + number % 2)) % (width * 3 // 4)
            frame[top : top + height // 4, left : left + width // 5] = colour
        return frame


def made_up_queries(expressions: int) -> list[Query]:
    """As long as the sentences of MeViS: 4 to 14 words."""
    dice = np.random.default_rng(1)
    return [Query(" ".join(dice.choice(WORDS, dice.integers(4, 15)))) for _ in range(expressions)]
