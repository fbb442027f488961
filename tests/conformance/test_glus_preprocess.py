"""CLIP and SAM-2 image inputs against `glus/preprocess.npz`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from glus.data.transforms import clip_image, clip_pixels, sam_image

CLIP_TOLERANCE = 1e-6
SAM_TOLERANCE = 2e-6


def build_image(entry: dict[str, Any], clips: Any) -> NDArray[np.uint8]:
    height, width, source = entry["height"], entry["width"], entry["source"]
    if isinstance(source, str):
        match = re.fullmatch(r"clips\.npz (\w+)\[(\d+)\]", source)
        assert match, source
        return clips[match[1]][int(match[2])]
    y, x, c = np.meshgrid(*(np.arange(n, dtype=np.int64) for n in (height, width, 3)), indexing="ij")
    value = ((7 * x + 13 * y + 31 * c + source["formula_offset"]) ^ ((x * y) >> 5)) % 256
    return value.astype(np.uint8)


def statistics(image: torch.Tensor) -> NDArray[np.float64]:
    flat = image.double().numpy().reshape(3, -1)
    return np.stack([flat.mean(1), flat.std(1), flat.min(1), flat.max(1)], axis=1)


@pytest.fixture(scope="module")
def images(golden: Callable[[str], Path]) -> dict[str, tuple[dict[str, Any], NDArray[np.uint8]]]:
    folder = golden("glus")
    listing = json.loads((folder / "preprocess.json").read_text())
    with np.load(folder / "clips.npz") as clips:
        built = {entry["name"]: (entry, build_image(entry, clips)) for entry in listing}
    assert built
    for name, (entry, image) in built.items():
        assert image.shape == (entry["height"], entry["width"], 3), name
        assert int(image.sum(dtype=np.int64)) == entry["sum"], name
    return built


@pytest.fixture(scope="module")
def expected(golden: Callable[[str], Path]) -> dict[str, NDArray[Any]]:
    with np.load(golden("glus") / "preprocess.npz") as arrays:
        return dict(arrays)


def test_clip(images: dict[str, Any], expected: dict[str, NDArray[Any]]) -> None:
    for name, (entry, image) in images.items():
        pixels = clip_pixels(image)
        assert int(pixels.sum(dtype=np.int64)) == entry["clip_uint8_sum"], name
        if f"{name}.clip_uint8" in expected:
            assert np.array_equal(pixels.transpose(2, 0, 1), expected[f"{name}.clip_uint8"]), name
        ours = clip_image(image)
        sub = ours[:, ::4, ::4].numpy()
        np.testing.assert_allclose(sub, expected[f"{name}.clip_sub"], rtol=0, atol=CLIP_TOLERANCE)
        np.testing.assert_allclose(statistics(ours), expected[f"{name}.clip_stats"], rtol=0, atol=CLIP_TOLERANCE)


def test_sam(images: dict[str, Any], expected: dict[str, NDArray[Any]]) -> None:
    for name, (_, image) in images.items():
        ours = sam_image(image)
        assert ours.shape == (3, 1024, 1024)
        assert ours.dtype == torch.float32
        corners = torch.stack([ours[:, :8, :8], ours[:, -8:, -8:]]).numpy()
        for array, value in (
            ("sam_sub", ours[:, ::16, ::16].numpy()),
            ("sam_corner", corners),
            ("sam_stats", statistics(ours)),
        ):
            np.testing.assert_allclose(
                value, expected[f"{name}.{array}"], rtol=0, atol=SAM_TOLERANCE, err_msg=name
            )
