"""Rebuild the tiny golden selector (conformance kfs/README.md) with our own modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glus_golden import load_weights_module

from kfs.merging import Noise


def load(root: Path, name: str) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """`name.json` and `name.npz` of the set; the first is empty where there is none."""
    spec = root / f"{name}.json"
    return json.loads(spec.read_text()) if spec.is_file() else {}, np.load(root / f"{name}.npz")


def golden_tensors(root: Path, shapes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights of the golden model under the original's names, adapters too if they are among `shapes`."""
    spec = json.loads((root / "tiny_model.json").read_text())
    state = load_weights_module(root).build_state(shapes, spec["weight_seed"], spec["overrides"])
    return {key: torch.from_numpy(value) for key, value in state.items()}


def replay(draws: np.ndarray) -> Noise:
    """Noise that hands out recorded draws in call order."""
    left = torch.from_numpy(draws.reshape(-1))

    def take(shape: tuple[int, int]) -> torch.Tensor:
        nonlocal left
        taken, left = left[: shape[0] * shape[1]], left[shape[0] * shape[1] :]
        return taken.reshape(shape)

    return take
