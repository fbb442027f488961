"""What every model that reads frames and text consists of: a vision tower in front of a language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from glus.modeling.assemble import Assembled
from glus.modeling.language import LanguageModel
from glus.modeling.vision import VisionTower


class MultimodalModel(nn.Module):
    """CLIP tower + LLaMA; subclasses build both and say what becomes of the states."""

    config: Any
    """A frozen dataclass of all sizes, the subclass's own."""
    vision: VisionTower
    language: LanguageModel

    @property
    def device(self) -> torch.device:
        return self.language.embedding.weight.device

    def finish_loading(self) -> None:
        """Recompute what is not stored; call after every change of weights, device or dtype."""
        self.language.reset_rotary(self.device)
        self.vision.reset_buffers(self.device)

    def encode_clip(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) CLIP pixels -> (N, tokens_per_image, H) LLM tokens; a frame's depend on it alone."""
        tokens: torch.Tensor = self.vision(pixels.to(self.device))
        return tokens

    def states(self, batch: Assembled) -> torch.Tensor:
        """(B, L, H) states after the final norm."""
        padded = len(set(batch.layout.lengths)) > 1
        states: torch.Tensor = self.language(batch.embeddings, batch.attention_mask if padded else None)
        return states
