"""A tiny selector for tests that need no golden files: random, lively weights, a tokenizer trained on the spot."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import clip_config, clip_state
from tiny_text import sentencepiece_model

from glus.config import LanguageConfig, VisionConfig
from glus.modeling.checkpoints import State
from glus.text.tokenizer import GlusTokenizer
from kfs.checkpoints import Selector, fresh_selector
from kfs.merging import MergingConfig
from kfs.model import CHAT_UNIVI, RELEASED, SelectorConfig

SEED = 5


def tiny_score_tokenizer(legacy: bool = False) -> GlusTokenizer:
    """The pieces of the tiny GLUS's tokenizer and `[SCORE]`."""
    return GlusTokenizer(sentencepiece_model(), {}, legacy=legacy, required=()).adding("[SCORE]")


def tiny_selector_config() -> SelectorConfig:
    """16 patches per frame, merged to 8 + 4 + 2 tokens; 0.05 million weights."""
    return SelectorConfig(
        LanguageConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            intermediate_size=48,
            vocab_size=len(tiny_score_tokenizer()),
            max_positions=4096,
            rms_norm_eps=1e-5,
        ),
        VisionConfig(hidden_size=16, num_layers=3, num_heads=2, intermediate_size=24, image_size=56, pool=1),
        MergingConfig((8, 4, 2)),
        out_dim=16,
    )


def tiny_selector(seed: int = SEED, legacy: bool = False) -> Selector:
    """In evaluation mode; scores of different frames differ visibly."""
    selector = fresh_selector(tiny_selector_config(), tiny_score_tokenizer(legacy))
    with torch.no_grad():
        for name, weight in selector.model.named_parameters():
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            weight.copy_(_scaled(name, torch.from_numpy(rng.standard_normal(tuple(weight.shape))).float()))
    return selector


def _scaled(name: str, values: torch.Tensor) -> torch.Tensor:
    if name.endswith("bias"):
        return 0.05 * values
    if "norm" in name:
        return 1 + 0.1 * values
    if "embed" in name and not name.endswith("patch_embedding.weight"):
        return 0.7 * values
    return 1.5 / math.sqrt(math.prod(values.shape[1:])) * values


def foreign_fields(selector: Selector, merged: bool) -> dict[str, Any]:
    """The `config.json` of a Chat-UniVi folder or of the original's merged one."""
    language, vision, merging = selector.config.language, selector.config.vision, selector.config.merging
    rates = {f"spatial_cluster_rate{level}": count for level, count in enumerate(merging.spatial)}
    fields = {
        "architectures": ["VISAForCausalLM" if merged else "ChatUniViLlamaForCausalLM"],
        "config": {
            "freeze": False,
            "mm_tune": True,
            **rates,
            "temporal_cluster_rate": 0.0625,
            "use_cluster": True,
        },
        "hidden_act": language.hidden_act,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size,
        "max_position_embeddings": language.max_positions,
        "mm_hidden_size": vision.hidden_size,
        "mm_use_im_start_end": merged,  # what the original's say, against what is true (defect 17)
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": vision.select_layer,
        "mm_vision_tower": "openai/clip-vit-large-patch14",
        "model_type": "ChatUniVi",
        "num_attention_heads": language.num_heads,
        "num_hidden_layers": language.num_layers,
        "num_key_value_heads": language.num_heads,
        "rms_norm_eps": language.rms_norm_eps,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "vocab_size": language.vocab_size - (not merged),
    }
    return fields | ({"out_dim": selector.config.out_dim, "train_mask_decoder": True} if merged else {})


def foreign_state(selector: Selector, merged: bool) -> State:
    """The weights of such a folder, with a rounded `inv_freq` copy."""
    table = RELEASED if merged else CHAT_UNIVI
    own = {
        key: value.clone()
        for key, value in selector.model.state_dict().items()
        if not key.startswith("vision.tower.") and (merged or not key.startswith("score_head."))
    }
    state = {table.to_foreign(key): value for key, value in own.items()}
    if not merged:
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            state[key] = state[key][:-1]
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.full((8,), 5.0)
    return state


def write_selector_clip(folder: Path, selector: Selector) -> Path:
    """The CLIP folder that goes with the foreign ones."""
    folder.mkdir(parents=True)
    torch.save(clip_state(selector.model), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(clip_config(selector.model)))
    return folder
