"""Writing the layouts of the originals, which tools made for their folders read (reference glus.md 2.1-2.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glus.config import LanguageConfig, ModelConfig, VisionConfig
from glus.io import atomic_path, write_json
from glus.modeling.checkpoints import State, write_safetensors
from glus.modeling.keys import CLIP, RELEASED, KeyTable
from glus.text.tokenizer import BOS_TOKEN, EOS_TOKEN, UNK_TOKEN, GlusTokenizer

SHARD_BYTES = 10_000_000_000
STOCK_TOWER = "openai/clip-vit-large-patch14"
TOWER_FOLDER = "vision_tower"


@dataclass(frozen=True)
class Layout:
    """What published folders of one model have that those of another have not.

    Attributes:
        table: names of the weights.
        fp32_parts: what the names of weights begin with that are stored in fp32 whatever the rest is in (2.4).
        fields: of `config.json`, beside those every model has.
        plain_tokens: special tokens are written as texts, and are matched as they stand.
    """

    table: KeyTable
    fp32_parts: tuple[str, ...]
    fields: Mapping[str, Any]
    plain_tokens: bool = False


def glus_layout(config: ModelConfig) -> Layout:
    """GLUS as published."""
    fields = {
        "_name_or_path": "glus",
        "architectures": ["GLUSForCausalLM"],
        "mask_threshold": 0.0,
        "max_hole_area": 0.0,
        "max_sequence_length": config.language.max_positions,
        "max_sprinkle_area": 0.0,
        "mm_use_im_start_end": True,
        "model_type": "llava",
        "out_dim": config.sam2.hidden_size,
    }
    return Layout(RELEASED, ("seg_head.", "sam."), fields)


def write_released(
    folder: Path,
    config: ModelConfig,
    state: State,
    tokenizer: GlusTokenizer,
    dtype: torch.dtype,
    own_tower: Path | None = None,
) -> None:
    """Write a GLUS as it was published; arguments as in `write_layout`."""
    write_layout(folder, glus_layout(config), config.language, config.vision, state, tokenizer, dtype, own_tower)


def write_layout(
    folder: Path,
    layout: Layout,
    language: LanguageConfig,
    vision: VisionConfig,
    state: State,
    tokenizer: GlusTokenizer,
    dtype: torch.dtype,
    own_tower: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model as it was published: pickled shards of tensors, configuration, tokenizer.

    Args:
        state: our names, nothing missing; CLIP is not part of any layout.
        dtype: of what is not among the layout's `fp32_parts`.
        own_tower: where `folder`/vision_tower will lie in the end, if CLIP is not the published one: it is then
            written there and named in `config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = {k: v.to(torch.float32 if k.startswith(layout.fp32_parts) else dtype) for k, v in state.items()}
    foreign = {layout.table.to_foreign(k): v for k, v in stored.items() if not k.startswith("vision.tower.")}
    for layer in range(language.num_layers):
        foreign[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = _inverse_frequencies(language, dtype)
    _write_shards(folder, foreign, shard_bytes)
    tower = STOCK_TOWER if own_tower is None else str(own_tower.resolve())
    if own_tower is not None:
        _write_tower(folder / TOWER_FOLDER, vision, stored)
    _write_tokenizer(folder, tokenizer, layout.plain_tokens)
    ids = _token_ids(tokenizer)
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids, **_VERSION})
    fields = {**_sizes(language, vision), **ids, **layout.fields, "mm_vision_tower": tower, "vision_tower": tower}
    fields["torch_dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", dict(sorted(fields.items())))


_VERSION = {"transformers_version": "4.31.0"}
"""Of the library whose layout this is; readers choose their code by it."""


def _sizes(language: LanguageConfig, vision: VisionConfig) -> dict[str, Any]:
    """What every published `config.json` says."""
    return {
        "freeze_mm_mlp_adapter": True,
        "hidden_act": language.hidden_act,
        "hidden_size": language.hidden_size,
        "image_aspect_ratio": "square",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": language.intermediate_size,
        "max_position_embeddings": language.max_positions,
        "mm_hidden_size": vision.hidden_size,
        "mm_use_im_patch_token": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": vision.select_layer,
        "num_attention_heads": language.num_heads,
        "num_hidden_layers": language.num_layers,
        "num_key_value_heads": language.num_heads,
        "pretrain_mm_mlp_adapter": None,
        "pretraining_tp": 1,
        "rms_norm_eps": language.rms_norm_eps,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "train_mask_decoder": True,
        **_VERSION,
        "tune_mm_mlp_adapter": False,
        "use_cache": False,
        "use_mm_proj": True,
        "vocab_size": language.vocab_size,
    }


def _token_ids(tokenizer: GlusTokenizer) -> dict[str, int]:
    ids = {"bos_token_id": BOS_TOKEN, "eos_token_id": EOS_TOKEN, "pad_token_id": UNK_TOKEN}
    return {name: tokenizer.encode(text)[-1] for name, text in ids.items()}


def _write_tokenizer(folder: Path, tokenizer: GlusTokenizer, plain: bool) -> None:
    """The files of 2.2."""
    tokenizer.save(folder)
    texts = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, "unk_token": UNK_TOKEN}
    rules = {"lstrip": False, "normalized": not plain, "rstrip": False, "single_word": False}
    tokens = {name: {"content": text, **rules} for name, text in texts.items()}
    write_json(folder / "special_tokens_map.json", {**(texts if plain else tokens), "pad_token": UNK_TOKEN})
    typed = {name: {"__type": "AddedToken", **value} for name, value in tokens.items()}
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": tokenizer.legacy,
            "model_max_length": 512,
            "pad_token": None,
            "padding_side": "right",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            **typed,
        },
    )


def _inverse_frequencies(language: LanguageConfig, dtype: torch.dtype) -> torch.Tensor:
    """Readers recompute them; published folders hold them in fp32, rounded through the model's dtype."""
    half = language.hidden_size // language.num_heads // 2
    exact = language.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    return exact.to(dtype).float()


def _write_shards(folder: Path, state: State, limit: int) -> None:
    """As transformers does it: `pytorch_model.bin`, or numbered parts with an index, which comes last."""
    shards = list(_split(state, limit))
    where: dict[str, str] = {}
    for number, keys in enumerate(shards, start=1):
        part = "" if len(shards) == 1 else f"-{number:05d}-of-{len(shards):05d}"
        name = f"pytorch_model{part}.bin"
        with atomic_path(folder / name) as temporary:
            # A view would take the whole vector it is a piece of into the file.
            torch.save({key: state[key].detach().contiguous().clone() for key in keys}, temporary)
        where.update(dict.fromkeys(keys, name))
    if len(shards) > 1:
        size = sum(_bytes(value) for value in state.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        write_json(folder / "pytorch_model.bin.index.json", index)


def _split(state: State, limit: int) -> Iterator[list[str]]:
    keys: list[str] = []
    size = 0
    for key, value in state.items():
        if keys and size + _bytes(value) > limit:
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += _bytes(value)
    yield keys


def _bytes(value: torch.Tensor) -> int:
    return value.numel() * value.element_size()


def _write_tower(folder: Path, vision: VisionConfig, state: State) -> None:
    """CLIP's vision tower as the hub publishes such models."""
    folder.mkdir(parents=True, exist_ok=True)
    tower = {CLIP.to_foreign(k): v for k, v in state.items() if k.startswith("vision.tower.")}
    count = math.prod((vision.image_size // vision.patch_size,) * 2) + 1
    tower["vision_model.embeddings.position_ids"] = torch.arange(count)[None]
    write_safetensors(folder / "model.safetensors", tower)
    sizes = {
        "architectures": ["CLIPVisionModel"],
        "hidden_act": vision.hidden_act,
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "intermediate_size": vision.intermediate_size,
        "layer_norm_eps": vision.layer_norm_eps,
        "model_type": "clip_vision_model",
        "num_attention_heads": vision.num_heads,
        "num_hidden_layers": vision.num_layers,
        "patch_size": vision.patch_size,
    }
    write_json(folder / "config.json", sizes)
