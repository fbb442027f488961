"""Checkpoint folders: which kind one is, how it becomes a model, how a model is saved.

Kinds (reference glus.md, section 2): `ours` (config.json with "format": "glus", one safetensors file, tokenizer),
`released` (a GLUS directory as published, CLIP apart), `lisa` (LISA-7B-v1, to which SAM-2 is added: the starting
point of training). Hub ids are fetched where there is a network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glus.config import Behaviour, ModelConfig, Sam2Config
from glus.errors import InputError
from glus.io import expect, field, read_json
from glus.modeling.checkpoints import State, from_released, load_state, read_file, read_folder
from glus.modeling.fingerprint import Fingerprint
from glus.modeling.folders import (
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    build_empty,
    check_vocabulary,
    kind_of,
    language_config,
    own_config,
    require,
    resolve,
    seeded,
    tower_folder,
    tower_state,
    vision_config,
    write_own,
)
from glus.modeling.glus import GLUSModel
from glus.modeling.keys import LISA, SAM2
from glus.modeling.quantise import check_bits, quantise, quantised
from glus.modeling.speed import check_attention, compile_parts
from glus.text.tokenizer import GlusTokenizer

FORMAT = "glus"
KINDS = {"GLUSForCausalLM": "released", "LISAForCausalLM": "lisa"}
SEG_HEAD_SEED = 0
SUPPORTED = {"rope_scaling": None, "mm_use_im_start_end": True, "mm_vision_select_feature": "patch"}


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is read; see `glus.GLUS.from_pretrained`."""

    dtype: torch.dtype
    device: torch.device
    behaviour: Behaviour | None = None
    vision_tower: str | Path | None = None
    sam2_checkpoint: str | Path | None = None
    sam2: Sam2Config | None = None
    image_size: int | None = None
    bits: int | None = None
    attention: str = "sdpa"
    compiled: bool = False


def load_pretrained(
    source: str | Path, options: LoadOptions
) -> tuple[GLUSModel, GlusTokenizer, Fingerprint | None]:
    """Model, tokenizer and, when the checkpoint carries one, its fingerprint.

    Raises:
        InputError: nothing loadable at `source`, or anything in it that does not fit.
    """
    check_bits(options.bits)
    check_attention(options.attention, options.device, options.dtype)
    if options.compiled and options.bits is not None:
        raise InputError("weights in 4 or 8 bits cannot be compiled; give one or the other")
    folder = resolve(source, ["config.json", *TOKENIZER_FILES])
    config_file = folder / "config.json"
    raw = expect(read_json(config_file, "checkpoint config"), dict, config_file, "file")
    fingerprint = None
    if raw.get("format") == FORMAT:
        parts = ("vision_tower", "sam2_checkpoint", "sam2")
        given = [name for name in parts if getattr(options, name) is not None]
        if given:
            raise InputError(f"{folder} is complete; do not pass {', '.join(given)}")
        config, fingerprint = _own_config(raw, config_file)
    elif raw.get("format") is not None:
        raise InputError(f"{folder} holds format {raw['format']!r}, no GLUS; kfs is a key-frame selector")
    else:
        config = _foreign_config(raw, config_file, options)
    if options.behaviour is not None:
        config = dataclasses.replace(config, behaviour=options.behaviour)
    if options.image_size not in (None, config.sam2.image_size):
        resized = dataclasses.replace(config.sam2, image_size=options.image_size)
        config, fingerprint = dataclasses.replace(config, sam2=resized), None
    tokenizer = GlusTokenizer.from_folder(folder, config.behaviour.strip_around_added_tokens)
    check_vocabulary(folder, tokenizer, config.language.vocab_size)
    model = build_empty(lambda: GLUSModel(config, tokenizer.seg_id), config_file)
    state = _state(folder, raw, config, options)
    # Weights that are to be quantised are not to need room on the device first.
    load_state(model, state, options.dtype, options.device if options.bits is None else "cpu", str(folder))
    if options.bits is not None:
        quantise(model.language, options.bits, options.device)
        model.to(options.device).finish_loading()
        fingerprint = None
    model.language.attention = options.attention
    if options.compiled:
        compile_parts(model)
    return model.eval(), tokenizer, fingerprint


def _own_config(raw: dict[str, Any], path: Path) -> tuple[ModelConfig, Fingerprint | None]:
    config = own_config(ModelConfig, raw, path)
    if raw.get("fingerprint") is None:
        return config, None
    stored = field(raw, "fingerprint", dict, path, "file")
    return config, Fingerprint.from_dict(stored, path)


def _foreign_config(raw: dict[str, Any], path: Path, options: LoadOptions) -> ModelConfig:
    """Our config from a released or LISA `config.json`, parsed by ourselves.

    transformers maps its `model_type` "llava" to another class and silently takes default sizes (D48).
    """
    kind = kind_of(raw, path, KINDS)
    if kind == "lisa" and options.sam2_checkpoint is None:
        raise InputError(f"{path.parent} is LISA, which has no SAM-2: pass sam2_checkpoint=sam2_hiera_large.pt")
    if kind == "released" and options.sam2_checkpoint is not None:
        raise InputError(f"{path.parent} already holds SAM-2's weights; do not pass sam2_checkpoint")

    require(raw, path, SUPPORTED)
    language = language_config(raw, path)
    sam2 = options.sam2 or Sam2Config()
    out_dim = field(raw, "out_dim", int, path, "file")
    if out_dim != sam2.hidden_size:
        raise InputError(f"{path}: out_dim {out_dim} must equal SAM-2's width {sam2.hidden_size}")
    vision = vision_config(raw, path, tower_folder(raw, options.vision_tower))
    return ModelConfig(language, vision, sam2, Behaviour())


def _state(folder: Path, raw: dict[str, Any], config: ModelConfig, options: LoadOptions) -> State:
    """All weights of a checkpoint under our names."""
    if raw.get("format") == FORMAT:
        return read_file(folder / WEIGHTS_FILE)
    kind = kind_of(raw, folder / "config.json", KINDS)
    tensors = read_folder(folder)
    state = from_released(tensors, str(folder)) if kind == "released" else LISA.rename(tensors, str(folder))
    if kind == "lisa":
        assert options.sam2_checkpoint is not None  # checked with the config
        path = Path(options.sam2_checkpoint)
        state.update(SAM2.rename(read_file(path), str(path)))
        state.update(fresh_seg_head(config))
    if not any(key.startswith("vision.tower.") for key in state):
        state.update(tower_state(tower_folder(raw, options.vision_tower)))
    return state


def fresh_seg_head(config: ModelConfig, seed: int = SEG_HEAD_SEED) -> State:
    """A newly initialised [SEG] head; the original starts training with one too (D27), but unseeded."""
    hidden, out = config.language.hidden_size, config.sam2.hidden_size
    head = seeded(seed, lambda: nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out)))
    return {f"seg_head.{k}": v.detach() for k, v in head.state_dict().items()}


def fresh_model(config: ModelConfig, tokenizer: GlusTokenizer, seed: int = 0) -> GLUSModel:
    """A newly initialised model (every module's own default), reproducible by seed; no pretrained part."""
    if len(tokenizer) != config.language.vocab_size:
        raise InputError(f"vocab_size {config.language.vocab_size} differs from the tokenizer's {len(tokenizer)}")
    return seeded(seed, lambda: GLUSModel(config, tokenizer.seg_id)).eval()


def save_pretrained(
    folder: Path, model: GLUSModel, tokenizer: GlusTokenizer, fingerprint: Fingerprint | None
) -> None:
    """Write our own format, weights bit by bit; config.json, which makes the folder loadable, comes last.

    Raises:
        InputError: the weights are quantised; what they were is gone.
    """
    if quantised(model.language):
        raise InputError("a model loaded with bits=4 or 8 cannot be saved; load it without")
    extra = {} if fingerprint is None else {"fingerprint": fingerprint.to_dict()}
    write_own(folder, FORMAT, model, tokenizer, extra)
