"""A tiny GLUS for tests that need no golden files: random but lively weights, a tokenizer trained on the spot."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_text import tiny_tokenizer
from torch import nn

from glus.api import GLUS
from glus.config import Behaviour, InferenceConfig, LanguageConfig, ModelConfig, Sam2Config, VisionConfig
from glus.inference.reference import StepTrace, segment_expression
from glus.modeling.checkpoints import to_released
from glus.modeling.glus import GLUSModel
from glus.modeling.keys import CLIP
from glus.modeling.multimodal import MultimodalModel
from glus.modeling.pretrained import fresh_model
from glus.text import prompts
from glus.text.tokenizer import GlusTokenizer
from glus.video import open_frames

SEED = 3
EXPRESSIONS = ["the red square that moves left", "a blue circle", "what stays behind the wall"]


def tiny_config(image_size: int = 256, behaviour: Behaviour | None = None, **sam2: Any) -> ModelConfig:
    """A model of 0.3 million weights that takes 4 tokens per image and `image_size` SAM-2 frames."""
    return ModelConfig(
        LanguageConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            intermediate_size=48,
            vocab_size=len(tiny_tokenizer()),
        ),
        VisionConfig(hidden_size=16, num_layers=3, num_heads=2, intermediate_size=24, image_size=56),
        Sam2Config(
            **{
                "image_size": image_size,
                "trunk_dim": 8,
                "trunk_heads": 1,
                "stages": (1, 1, 2, 1),
                "windows": (8, 4, 14, 7),
                "global_blocks": (3,),
                "hidden_size": 32,
                "memory_dim": 8,
                "memory_layers": 1,
                "memory_ffn": 32,
                "decoder_ffn": 48,
                "iou_hidden": 24,
                **sam2,
            }
        ),
        behaviour or Behaviour(),
    )


def fill(model: GLUSModel, tokenizer: GlusTokenizer, seed: int = SEED, answers_seg: bool = True) -> GLUSModel:
    """Replace every weight by a random one large enough that each part shows in the masks.

    Args:
        answers_seg: the token that ends every prompt is drawn towards [SEG]; else the model never answers [SEG].
    """
    with torch.no_grad():
        for name, weight in (*model.named_parameters(), ("gaussian", _gaussian(model))):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            values = torch.from_numpy(rng.standard_normal(tuple(weight.shape))).float()
            weight.copy_(_scaled(name, values))
        direction = torch.from_numpy(np.random.default_rng([seed, 1]).standard_normal(32)).float()
        space = tokenizer.encode(prompts.FORCED_ANSWER)[-1]
        model.language.embedding.weight[space] += 2 * direction
        model.language.lm_head.weight[tokenizer.seg_id] = direction * (2 if answers_seg else 0)
    return model


def _gaussian(model: GLUSModel) -> torch.Tensor:
    return model.sam.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix


# Chosen so that masks differ between frames and expressions, some frames take the stability fallback, and
# bf16 stays near fp32.
GAINS = {
    "sam_mask_decoder.transformer": 2.0,
    "hypernetworks": 2.0,
    "iou_prediction": 2.0,
    "seg_head": 4.0,
    "sam.": 0.8,
}


def _scaled(name: str, values: torch.Tensor) -> torch.Tensor:
    if name.endswith("gamma"):
        return 0.5 + 0.1 * values
    if name.endswith("bias"):
        return 0.05 * values
    if values.dim() == 1:
        return 1 + 0.1 * values
    embedding = "embed" in name or "token" in name or name == "gaussian" or values.shape[0] == 1
    if embedding and not name.endswith("patch_embedding.weight"):
        return values * (0.3 if name.startswith("sam") else 0.7)
    fan_in = values.shape[0] if "output_upscaling" in name else math.prod(values.shape[1:])
    gain = next((gain for part, gain in GAINS.items() if part in name), 1.5)
    return gain / math.sqrt(fan_in) * values


def tiny_glus(
    config: ModelConfig | None = None, seed: int = SEED, answers_seg: bool = True, **behaviour: Any
) -> GLUS:
    """A tiny model in evaluation mode; `behaviour` are switches off the default."""
    config = config or tiny_config(behaviour=Behaviour(**behaviour))
    tokenizer = tiny_tokenizer(config.behaviour.strip_around_added_tokens)
    return GLUS(fill(fresh_model(config, tokenizer), tokenizer, seed, answers_seg).eval(), tokenizer)


def tiny_clip(frames: int = 6, height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """uint8 (frames, height, width, 3): a coloured square that crosses a textured background."""
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 120, (height, width, 3))
    clip = np.repeat(background[None], frames, axis=0)
    for index in range(frames):
        left = 2 + (width - 16) * index // max(1, frames)
        clip[index, 10:24, left : left + 12] = (230, 60 + 10 * index % 100, 30)
    return clip.astype(np.uint8)


def traces(
    glus: GLUS,
    clip: np.ndarray,
    expression: str = EXPRESSIONS[0],
    config: InferenceConfig | None = None,
    key_frame: int = 0,
) -> list[StepTrace]:
    """Every step of the reference schedule."""
    seen: list[StepTrace] = []
    walk = segment_expression(
        glus.model,
        glus.tokenizer,
        open_frames(clip),
        expression,
        config or InferenceConfig(),
        key_frame,
        observer=seen.append,
    )
    for _ in walk:
        pass
    return seen


def released_config(model: GLUSModel) -> dict[str, Any]:
    """The `config.json` of a released GLUS directory for `model`."""
    language, vision = model.config.language, model.config.vision
    return {
        "architectures": ["GLUSForCausalLM"],
        "hidden_act": language.hidden_act,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size,
        "max_position_embeddings": language.max_positions,
        "mm_hidden_size": vision.hidden_size,
        "mm_use_im_start_end": True,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": vision.select_layer,
        "mm_vision_tower": "openai/clip-vit-large-patch14",
        "model_type": "llava",
        "num_attention_heads": language.num_heads,
        "num_hidden_layers": language.num_layers,
        "num_key_value_heads": language.num_heads,
        "out_dim": model.config.sam2.hidden_size,
        "rms_norm_eps": language.rms_norm_eps,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "vocab_size": language.vocab_size,
    }


def released_state(model: GLUSModel, with_clip: bool = False) -> dict[str, torch.Tensor]:
    """`model` under the released names, with the rounded `inv_freq` copies a released file holds."""
    state = {key: value.clone() for key, value in to_released(model.state_dict(), with_clip).items()}
    count = model.config.language.hidden_size // model.config.language.num_heads // 2
    frequencies = 10000.0 ** (-torch.arange(count) / count)
    for layer in range(model.config.language.num_layers):
        key = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        state[key] = frequencies.to(torch.bfloat16).float()
    return state


def clip_config(model: MultimodalModel) -> dict[str, Any]:
    """The `config.json` of a published CLIP, its vision part nested."""
    vision = model.config.vision
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "vision_config": {
            "hidden_act": vision.hidden_act,
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": vision.layer_norm_eps,
            "num_attention_heads": vision.num_heads,
            "num_hidden_layers": vision.num_layers,
            "patch_size": vision.patch_size,
        },
        "text_config": {"hidden_size": 8},
    }


def clip_state(model: MultimodalModel) -> dict[str, torch.Tensor]:
    """A published CLIP: vision tower, text tower, projections, and integer position ids."""
    own = {k: v for k, v in model.state_dict().items() if k.startswith("vision.tower.")}
    state = {CLIP.to_foreign(key): value.clone() for key, value in own.items()}
    positions = (model.config.vision.image_size // model.config.vision.patch_size) ** 2 + 1
    return {
        **state,
        "vision_model.embeddings.position_ids": torch.arange(positions)[None],
        "text_model.embeddings.position_ids": torch.arange(7)[None],
        "text_model.final_layer_norm.weight": torch.ones(8),
        "text_projection.weight": torch.ones(4, 8),
        "visual_projection.weight": torch.ones(4, 16),
        "logit_scale": torch.tensor(2.0),
    }


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Bit by bit, keys included."""
    a, b = one.state_dict(), other.state_dict()
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
