"""CLIP tower, token pooling, projector: a frame becomes a few dozen tokens of the LLM (section 1.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from glus.config import VisionConfig
from glus.modeling.freezing import graph_if_trained


class VisionTower(nn.Module):
    """Frames to LLM tokens. `tower` is CLIP, `projector` maps its width to the LLM's."""

    def __init__(
        self, config: VisionConfig, llm_dim: int, pooling: Literal["consecutive", "grid"] = "consecutive"
    ) -> None:
        super().__init__()
        self.config = config
        self.pooling = pooling
        self.tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_act=config.hidden_act,
                layer_norm_eps=config.layer_norm_eps,
            )
        )
        self.tower.requires_grad_(False)  # until a recipe trains it
        self.projector = nn.Linear(config.hidden_size, llm_dim)

    def reset_buffers(self, device: torch.device) -> None:
        """Rebuild CLIP's position indices, which a model built on the meta device lacks."""
        embeddings = self.tower.embeddings
        count = (self.config.image_size // self.config.patch_size) ** 2 + 1
        embeddings.position_ids = torch.arange(count, device=device)[None]

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """CLIP patch states of hidden layer `select_layer`, without CLS.

        Args:
            pixels: (B, 3, image_size, image_size), normalised.

        Returns:
            (B, patches, hidden_size). Layers after the selected one are not run.
        """
        tower = self.tower
        states = tower.pre_layrnorm(tower.embeddings(pixels.to(self.projector.weight.dtype)))
        used = self.config.num_layers + 1 + self.config.select_layer
        for layer in tower.encoder.layers[:used]:
            states = layer(states, None)
        return states[:, 1:]

    def pool(self, patches: torch.Tensor) -> torch.Tensor:
        """Average the patch tokens in groups of `config.pool`: (B, P, C) -> (B, P / pool, C).

        `consecutive` groups are row-major neighbours in one row (C4); `grid` groups are square.
        """
        batch, count, width = patches.shape
        size = self.config.pool
        if self.pooling == "consecutive":
            return patches.reshape(batch, count // size, size, width).mean(dim=2)
        side, edge = int(count**0.5), int(size**0.5)
        if edge * edge != size or side % edge:
            raise ValueError(f"grid pooling needs a square group size dividing {side}, found {size}")
        grid = patches.reshape(batch, side // edge, edge, side // edge, edge, width)
        return grid.mean(dim=(2, 4)).reshape(batch, count // size, width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) pixels -> (B, tokens_per_image, llm_dim); without a graph through a frozen tower."""
        with graph_if_trained(self.tower.parameters()):
            patches = self.patches(pixels)
        return self.projector(self.pool(patches))
