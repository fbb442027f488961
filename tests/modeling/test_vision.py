"""The CLIP branch against transformers' own forward (reference glus.md 1.3)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import tiny_config, tiny_glus

from glus.modeling.vision import VisionTower


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", [-1, -2, -3])
@torch.inference_mode()
def test_patches_are_those_of_the_selected_layer_without_cls(layer: int) -> None:
    """Hidden states of index -2, before the post-layernorm, in the order of the patches."""
    torch.manual_seed(0)
    vision = VisionTower(dataclasses.replace(tiny_config().vision, select_layer=layer), 32).eval()
    wanted = vision.tower(pixels(), output_hidden_states=True).hidden_states[layer]
    assert wanted.shape == (2, 17, 16)
    torch.testing.assert_close(vision.patches(pixels()), wanted[:, 1:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_pooling_and_projection_may_change_places() -> None:
    vision = tiny_glus().model.vision
    patches = vision.patches(pixels())
    torch.testing.assert_close(vision(pixels()), vision.pool(vision.projector(patches)), atol=1e-4, rtol=1e-4)
    assert vision(pixels()).shape == (2, vision.config.tokens_per_image, 32)


def test_clip_gets_no_gradient_but_the_projector_does() -> None:
    vision = tiny_glus().model.vision.train()
    vision(pixels()).pow(2).sum().backward()
    assert all(p.grad is None for p in vision.tower.parameters())
    assert vision.projector.weight.grad is not None
    assert float(vision.projector.weight.grad.abs().sum()) > 0


def test_grid_pooling_needs_squares() -> None:
    vision = VisionTower(dataclasses.replace(tiny_config().vision, pool=8), 32, "grid")
    with pytest.raises(ValueError, match="square group size"):
        vision.pool(torch.zeros(1, 16, 16))
