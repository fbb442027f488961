"""Key names and shapes of the recorded models, full-size and tiny (glus/README.md, 1 and 2.9)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glus_golden import golden_state, model_config

from glus.config import ModelConfig
from glus.modeling import checkpoints
from glus.modeling.glus import GLUSModel
from glus.modeling.keys import CLIP, LISA, RELEASED, SAM2

SAM_PREFIX = "model.visual_model."
CLIP_PREFIX = "model.vision_tower.vision_tower."
Shapes = dict[str, tuple[int, ...]]


def shapes_of(model: GLUSModel, prefix: str = "") -> Shapes:
    return {k: tuple(v.shape) for k, v in model.state_dict().items() if k.startswith(prefix)}


def as_tuples(shapes: dict[str, list[int]]) -> Shapes:
    return {key: tuple(shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def manifest(golden: Callable[[str], Path]) -> dict[str, Any]:
    return json.loads((golden("glus") / "manifest_7b.json").read_text())


@pytest.fixture(scope="module")
def full_size(manifest: dict[str, Any]) -> GLUSModel:
    """The default configuration without memory for its language model and CLIP."""
    with torch.device("meta"):
        return GLUSModel(ModelConfig(), seg_id=manifest["saved"]["lm_head.weight"][0] - 1)


def test_every_saved_key_is_consumed_with_its_shape(full_size: GLUSModel, manifest: dict[str, Any]) -> None:
    saved, buffers = as_tuples(manifest["saved"]), set(manifest["computed_buffers"])
    assert {key for key in saved if RELEASED.to_own(key) is None} == buffers  # dropped on purpose: only these
    renamed = RELEASED.rename(saved, "manifest")
    clip = RELEASED.rename(as_tuples(manifest["dropped_by_merge"]), "manifest")
    assert len(renamed) == len(saved) - len(buffers)  # no two keys become one
    assert {**renamed, **clip} == shapes_of(full_size)
    assert not set(renamed) & set(clip)


def test_our_keys_become_the_saved_ones(full_size: GLUSModel, manifest: dict[str, Any]) -> None:
    state = full_size.state_dict()
    without = {k: tuple(v.shape) for k, v in checkpoints.to_released(state).items()}
    buffers = set(manifest["computed_buffers"])
    assert without == {k: v for k, v in as_tuples(manifest["saved"]).items() if k not in buffers}
    with_clip = set(checkpoints.to_released(state, with_clip=True))
    assert with_clip - set(without) == set(manifest["dropped_by_merge"])
    for key in state:
        assert RELEASED.to_own(RELEASED.to_foreign(key)) == key


def test_a_full_size_state_passes_and_any_other_fails(full_size: GLUSModel, manifest: dict[str, Any]) -> None:
    """The strict check itself, on tensors without storage."""
    keys = {**manifest["saved"], **manifest["dropped_by_merge"]}
    foreign = {key: torch.empty(shape, device="meta") for key, shape in keys.items()}
    state = checkpoints.from_released(foreign)
    wanted = shapes_of(full_size)
    checkpoints.check_fit(wanted, state, "manifest")
    for key in ("language.lm_head.weight", "sam.memory_encoder.fuser.layers.1.gamma", "seg_head.2.bias"):
        with pytest.raises(checkpoints.InputError, match=f"1 missing: {key}"):
            checkpoints.check_fit(wanted, {k: v for k, v in state.items() if k != key}, "manifest")
        with pytest.raises(checkpoints.InputError, match=f"{key} has shape"):
            checkpoints.check_fit(wanted, {**state, key: torch.empty(3, 5, device="meta")}, "manifest")
    with pytest.raises(checkpoints.InputError, match=r"1 surplus: language\.extra"):
        checkpoints.check_fit(wanted, {**state, "language.extra": torch.empty(1)}, "manifest")


def test_parameter_counts(full_size: GLUSModel, manifest: dict[str, Any]) -> None:
    sizes = {key: math.prod(shape) for key, shape in shapes_of(full_size).items()}
    counts = manifest["parameters"]
    clip = sum(size for key, size in sizes.items() if key.startswith("vision.tower."))
    assert clip == counts["vision_tower"]
    assert sum(size for key, size in sizes.items() if key.startswith("sam.")) == counts["visual_model"]
    assert sum(sizes.values()) - clip == counts["saved_total"]


def test_a_sam2_file_fills_the_sam_part(full_size: GLUSModel, manifest: dict[str, Any]) -> None:
    """`sam2_hiera_large.pt` holds the keys below `model.visual_model.`: 900 of them (reference glus.md 2.3)."""
    file = {
        k.removeprefix(SAM_PREFIX): v for k, v in as_tuples(manifest["saved"]).items() if k.startswith(SAM_PREFIX)
    }
    assert len(file) == 900
    renamed = SAM2.rename(file, "sam2")
    assert renamed == shapes_of(full_size, "sam.")
    assert {SAM2.to_foreign(key) for key in renamed} == set(file)


def test_a_clip_file_fills_the_tower(full_size: GLUSModel, manifest: dict[str, Any]) -> None:
    file = {k.removeprefix(CLIP_PREFIX): v for k, v in as_tuples(manifest["dropped_by_merge"]).items()}
    other = {"text_model.embeddings.token_embedding.weight": (49408, 768), "logit_scale": ()}
    assert CLIP.rename({**file, **other}, "clip") == shapes_of(full_size, "vision.tower.")


def test_lisa_and_sam2_together_lack_only_the_seg_head(full_size: GLUSModel, manifest: dict[str, Any]) -> None:
    """The starting point of training: the [SEG] head is new (D27), CLIP comes from its own folder."""
    saved = as_tuples(manifest["saved"])
    lisa = {k: v for k, v in saved.items() if not k.startswith(SAM_PREFIX)}
    sam1 = {
        f"{SAM_PREFIX}{part}.weight": (1,) for part in ("image_encoder.a.b", "prompt_encoder.c", "mask_decoder.d")
    }
    own = LISA.rename({**lisa, **sam1}, "lisa")
    sam = shapes_of(full_size, "sam.")
    clip, head = shapes_of(full_size, "vision.tower."), shapes_of(full_size, "seg_head.")
    assert {**own, **sam, **clip, **head} == shapes_of(full_size)
    assert not set(own) & (set(sam) | set(clip) | set(head))


@pytest.mark.parametrize(
    "key", ["model.visual_model.memory_encoder.x", "model.new.weight", "lm_head.bias", "score"]
)
def test_lisa_refuses_what_it_never_held(key: str) -> None:
    with pytest.raises(checkpoints.InputError, match=key):
        LISA.rename({key: (1,)}, "lisa")


def test_tiny_manifest(golden: Callable[[str], Path]) -> None:
    root = golden("glus")
    spec = json.loads((root / "spec.json").read_text())
    tiny = json.loads((root / "manifest_tiny.json").read_text())
    model = GLUSModel(model_config(spec), seg_id=spec["token_ids"]["[SEG]"])
    saved, clip = as_tuples(tiny["saved"]), as_tuples(tiny["vision_tower_not_saved"])
    assert {key for key in saved if RELEASED.to_own(key) is None} == set(tiny["computed_buffers"])
    assert RELEASED.rename({**saved, **clip}, "manifest") == shapes_of(model)
    back = {key: tuple(value.shape) for key, value in checkpoints.to_released(model.state_dict()).items()}
    assert back == {k: v for k, v in saved.items() if k not in tiny["computed_buffers"]}


def test_weight_generator(golden: Callable[[str], Path]) -> None:
    """All other goldens rest on the rebuilt weights being the recorded ones."""
    root = golden("glus")
    spec = json.loads((root / "spec.json").read_text())
    state = golden_state(root)
    assert spec["weights_check"]
    for key, wanted in spec["weights_check"].items():
        array = np.ascontiguousarray(state[key].numpy(), dtype="<f4")
        assert hashlib.sha256(array.tobytes()).hexdigest() == wanted["sha256_of_little_endian_float32"], key
        assert float(array.sum(dtype=np.float64)) == pytest.approx(wanted["sum"], rel=1e-9, abs=1e-9)
        assert array.ravel()[:3].tolist() == pytest.approx(wanted["first"])
