"""CLIP tokens, SAM-2 features and position codes of single frames (glus/README.md, 2.5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from glus_golden import golden_model

from glus.data.transforms import clip_image, sam_image
from glus.modeling.glus import GLUSModel


@pytest.fixture(scope="module")
def root(golden: Callable[[str], Path]) -> Path:
    return golden("glus")


@pytest.fixture(scope="module")
def model(root: Path) -> GLUSModel:
    return golden_model(root)


def clip_names(root: Path) -> list[str]:
    with np.load(root / "features.npz") as data:
        return sorted({k.split(".")[0] for k in data if "." in k})


def stats(maps: torch.Tensor) -> np.ndarray:
    flat = maps.double().flatten(1)
    return torch.stack([flat.mean(1), flat.std(1, unbiased=False)], dim=1).numpy()


@torch.inference_mode()
def test_clip_features(root: Path, model: GLUSModel) -> None:
    with np.load(root / "features.npz") as data, np.load(root / "clips.npz") as clips:
        for name in clip_names(root):
            pixels = clip_image(clips[name][0], model.config.vision.image_size)[None]
            patches = model.vision.patches(pixels)
            for key, value in {
                "clip_tokens": patches,
                "clip_pooled": model.vision.pool(patches),
                "clip_projected": model.encode_clip(pixels),
            }.items():
                np.testing.assert_allclose(value[0].numpy(), data[f"{name}.{key}"], atol=2e-5, rtol=0)


@torch.inference_mode()
def test_sam_features(root: Path, model: GLUSModel) -> None:
    with np.load(root / "features.npz") as data, np.load(root / "clips.npz") as clips:
        for name in clip_names(root):
            pixels = sam_image(clips[name][0], model.config.sam2.image_size)[None]
            features = model.encode_frame(pixels)
            for level, value in enumerate([*features.high_res, features.embed]):
                sampled = data[f"{name}.sam_level{level}_sub"]
                step = value.shape[-1] // sampled.shape[-1]
                np.testing.assert_allclose(value[0, :, ::step, ::step].numpy(), sampled, atol=5e-5, rtol=0)
                np.testing.assert_allclose(
                    stats(value[0]), data[f"{name}.sam_level{level}_stats"], atol=5e-5, rtol=0
                )
            if f"{name}.hiera_stage0_sub" in data:
                for stage, value in enumerate(model.sam.image_encoder.trunk(pixels)):
                    sampled = data[f"{name}.hiera_stage{stage}_sub"]
                    step = value.shape[-1] // sampled.shape[-1]
                    np.testing.assert_allclose(value[0, :, ::step, ::step].numpy(), sampled, atol=5e-5, rtol=0)
                    np.testing.assert_allclose(
                        stats(value[0]), data[f"{name}.hiera_stage{stage}_stats"], atol=5e-5, rtol=0
                    )


@torch.inference_mode()
def test_position_codes(root: Path, model: GLUSModel) -> None:
    with np.load(root / "features.npz") as data, np.load(root / "clips.npz") as clips:
        name = clip_names(root)[0]
        pixels = sam_image(clips[name][0], model.config.sam2.image_size)[None]
        _, codes = model.sam.image_encoder.neck(model.sam.image_encoder.trunk(pixels))
        wanted = {f"sam_pos{level}_sub": code for level, code in enumerate(codes[:3])}
        wanted["dense_pe_sub"] = model.sam.dense_position()
        embed = model.encode_frame(pixels).embed
        wanted["memory_pos_sub"] = model.sam.memory_encoder.position_encoding(
            embed.new_zeros(1, model.config.sam2.memory_dim, *embed.shape[-2:])
        )
        for key, value in wanted.items():
            step = value.shape[-1] // data[key].shape[-1]
            np.testing.assert_allclose(value[0, :, ::step, ::step].numpy(), data[key], atol=5e-5, rtol=0)
