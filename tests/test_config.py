"""Configurations from dicts and YAML: strict about keys and types."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from glus.config import (
    Behaviour,
    InferenceConfig,
    LanguageConfig,
    ModelConfig,
    Sam2Config,
    VisionConfig,
    from_dict,
    load_yaml,
)
from glus.errors import InputError


def test_defaults_are_the_released_model() -> None:
    """Reference glus.md 1.2, 1.3, 2.3."""
    language, vision, sam2 = LanguageConfig(), VisionConfig(), Sam2Config()
    assert (language.num_layers, language.hidden_size, language.num_heads) == (32, 4096, 32)
    assert (language.intermediate_size, language.vocab_size, language.max_positions) == (11008, 32004, 2048)
    assert (vision.tokens_per_image, vision.select_layer, vision.pool) == (64, -2, 4)
    assert (sam2.embed_size, sam2.low_res_size, sam2.memory_slots) == (64, 256, 7)


def test_a_config_survives_a_round_trip() -> None:
    config = ModelConfig(
        LanguageConfig(hidden_size=8, rms_norm_eps=2e-5),
        VisionConfig(pool=2),
        Sam2Config(stages=(1, 2, 3, 4), global_blocks=()),
        Behaviour(object_pointers=True, clip_view="pad"),
    )
    assert from_dict(ModelConfig, config.to_dict(), "x") == config
    assert from_dict(ModelConfig, {}, "x") == ModelConfig()


def test_configs_are_frozen() -> None:
    for config in (LanguageConfig(), VisionConfig(), Sam2Config(), Behaviour(), ModelConfig(), InferenceConfig()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, dataclasses.fields(config)[0].name, 1)


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (InferenceConfig, {"query_frame": 3}, "where: unknown key 'query_frame'; known keys: context_choice"),
        (InferenceConfig, {1: 3, "a": 2}, "unknown key '1'"),
        (InferenceConfig, {"query_frames": "3"}, "where: query_frames must be int, found '3'"),
        (InferenceConfig, {"query_frames": 3.0}, "query_frames must be int"),
        (InferenceConfig, {"query_frames": True}, "query_frames must be int"),
        (InferenceConfig, {"query_frames": None}, "query_frames must be int"),
        (InferenceConfig, {"use_memory": 1}, "use_memory must be bool"),
        (InferenceConfig, {"use_memory": "no"}, "use_memory must be bool"),
        (InferenceConfig, {"context_choice": "first"}, "context_choice must be one of"),
        (InferenceConfig, {"context_choice": ["middle"]}, "context_choice must be one of"),
        (InferenceConfig, {"query_frames": 0}, "query_frames must be at least 1"),
        (InferenceConfig, [1], "where: expected a mapping, found list"),
        (ModelConfig, {"language": {"heads": 2}}, "where: language: unknown key 'heads'"),
        (ModelConfig, {"language": 3}, "where: language: expected a mapping"),
        (ModelConfig, {"sam2": {"stages": [1, 2, 3]}}, "must have four entries"),
        (ModelConfig, {"sam2": {"stages": [1, 2, 3, "4"]}}, "stages must be a list of integers"),
        (ModelConfig, {"sam2": {"image_size": 1000}}, "multiple of 64"),
        (ModelConfig, {"vision": {"patch_size": 15}}, "no multiple of patch_size 15"),
        (ModelConfig, {"vision": {"pool": 3}}, "pool 3 does not divide"),
        (ModelConfig, {"vision": {"select_layer": 0}}, "select_layer 0"),
        (ModelConfig, {"vision": {"select_layer": -25}}, "select_layer -25"),
    ],
)
def test_faults_are_named(kind: type, data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_dict(kind, data, "where")


def test_an_integer_is_a_float() -> None:
    assert from_dict(LanguageConfig, {"rope_theta": 5000}, "x").rope_theta == 5000.0


def test_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("query_frames: 2\ncontext_choice: linspace\n")
    assert load_yaml(InferenceConfig, path) == InferenceConfig(query_frames=2, context_choice="linspace")
    path.write_text("# nothing set\n")
    assert load_yaml(InferenceConfig, path) == InferenceConfig()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"query_frames: [", "is not valid YAML"),
        (b"query_frames: 2\nquery: 3\n", "unknown key 'query'"),
        (b"[]", "expected a mapping, found list"),
        (b"0", "expected a mapping, found int"),
        (b"\xff\xfe\x00", "cannot be read|not valid YAML"),
        (b"!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_bad_yaml(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        load_yaml(InferenceConfig, path)
    assert "bad.yaml" in str(caught.value)


def test_missing_yaml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read"):
        load_yaml(InferenceConfig, tmp_path / "nowhere.yaml")


CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def test_the_released_yaml_equals_the_defaults() -> None:
    assert load_yaml(ModelConfig, CONFIGS / "glus_7b.yaml") == ModelConfig()


def test_the_tiny_yaml_loads() -> None:
    tiny = load_yaml(ModelConfig, CONFIGS / "glus_tiny.yaml")
    assert tiny.sam2.image_size == 256
    assert tiny.language.hidden_size < 1000
