"""Checkpoint folders: which kind one is, how it becomes a model, how a model is saved.

Kinds (reference glus.md, section 2): `ours` (config.json with "format": "glus", one safetensors file, tokenizer),
`released` (a GLUS directory as published, CLIP apart), `lisa` (LISA-7B-v1, to which SAM-2 is added: the starting
point of training). Hub ids are fetched where there is a network.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from glus.config import Behaviour, LanguageConfig, ModelConfig, Sam2Config, VisionConfig, from_dict
from glus.errors import InputError
from glus.io import expect, field, read_json, write_json
from glus.modeling.checkpoints import State, from_released, load_state, read_file, read_folder, write_safetensors
from glus.modeling.fingerprint import Fingerprint
from glus.modeling.glus import GLUSModel
from glus.modeling.keys import CLIP, LISA, SAM2
from glus.modeling.quantise import check_bits, quantise, quantised
from glus.text.tokenizer import GlusTokenizer

FORMAT, FORMAT_VERSION = "glus", 1
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = ["tokenizer.model", "added_tokens.json"]
SAFETENSORS = ["*.safetensors", "*.safetensors.index.json"]
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
SEG_HEAD_SEED = 0
SUPPORTED = {"rope_scaling": None, "mm_use_im_start_end": True, "mm_vision_select_feature": "patch"}
"""Fields of a foreign config whose other values (or absence) mean another model."""


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


def load_pretrained(
    source: str | Path, options: LoadOptions
) -> tuple[GLUSModel, GlusTokenizer, Fingerprint | None]:
    """Model, tokenizer and, when the checkpoint carries one, its fingerprint.

    Raises:
        InputError: nothing loadable at `source`, or anything in it that does not fit.
    """
    check_bits(options.bits)
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
    else:
        config = _foreign_config(raw, config_file, options)
    if options.behaviour is not None:
        config = dataclasses.replace(config, behaviour=options.behaviour)
    if options.image_size not in (None, config.sam2.image_size):
        resized = dataclasses.replace(config.sam2, image_size=options.image_size)
        config, fingerprint = dataclasses.replace(config, sam2=resized), None
    tokenizer = GlusTokenizer.from_folder(folder, config.behaviour.strip_around_added_tokens)
    if len(tokenizer) != config.language.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, config.json says vocab_size "
            f"{config.language.vocab_size}"
        )
    unbuildable = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
    try:
        with torch.device("meta"):
            model = GLUSModel(config, tokenizer.seg_id)
    except (*unbuildable, StrictDataclassError) as error:
        raise InputError(f"{config_file}: no model can be built with these sizes ({error!r})") from None
    state = _state(folder, raw, config, options)
    # Weights that are to be quantised are not to need room on the device first.
    load_state(model, state, options.dtype, options.device if options.bits is None else "cpu", str(folder))
    if options.bits is not None:
        quantise(model.language, options.bits, options.device)
        model.to(options.device).finish_loading()
        fingerprint = None
    return model.eval(), tokenizer, fingerprint


def resolve(source: str | Path, files: list[str]) -> Path:
    """A local folder for `source`: itself, or `files` and weights of a hub repository fetched into the cache.

    Raises:
        InputError: neither a folder nor reachable on the hub; names the files wanted.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    wanted = ", ".join([*files, *SAFETENSORS, "or", *PICKLES])
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or str(source).startswith((".", "checkpoints/")):
        raise InputError(
            f"no checkpoint folder at {source}; expected a folder with {wanted}, or a hub id owner/name"
        )
    # huggingface_hub is slow to import and not needed for a local folder.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(str(source), allow_patterns=[*files, *SAFETENSORS]))
        if not any(found.glob("*.safetensors")):  # asked for second: many repositories hold both forms
            found = Path(snapshot_download(str(source), allow_patterns=[*files, *PICKLES]))
        return found
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"{source} is no folder here, and the hub could not give it ({type(error).__name__}). Fetch these "
            f"files on a machine with a network and pass their folder: {wanted}"
        ) from None


def _own_config(raw: dict[str, Any], path: Path) -> tuple[ModelConfig, Fingerprint | None]:
    version = field(raw, "format_version", int, path, "file")
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format_version {version} is unknown to this version of glus ({FORMAT_VERSION})")
    config = from_dict(ModelConfig, field(raw, "model", dict, path, "file"), f"{path}: model")
    if raw.get("fingerprint") is None:
        return config, None
    stored = field(raw, "fingerprint", dict, path, "file")
    return config, Fingerprint.from_dict(stored, path)


def _foreign_config(raw: dict[str, Any], path: Path, options: LoadOptions) -> ModelConfig:
    """Our config from a released or LISA `config.json`, parsed by ourselves.

    transformers maps its `model_type` "llava" to another class and silently takes default sizes (D48).
    """
    kind = _kind(raw, path)
    if kind == "lisa" and options.sam2_checkpoint is None:
        raise InputError(f"{path.parent} is LISA, which has no SAM-2: pass sam2_checkpoint=sam2_hiera_large.pt")
    if kind == "released" and options.sam2_checkpoint is not None:
        raise InputError(f"{path.parent} already holds SAM-2's weights; do not pass sam2_checkpoint")

    def number(key: str) -> int:
        return int(field(raw, key, int, path, "file"))

    heads = number("num_attention_heads")
    if raw.get("num_key_value_heads", heads) != heads:
        raise InputError(f"{path}: num_key_value_heads other than num_attention_heads is not supported")
    for key, supported in SUPPORTED.items():
        if raw.get(key) != supported:
            raise InputError(f"{path}: {key} {raw.get(key)!r} is not supported, only {supported!r}")
    theta = field({"rope_theta": LanguageConfig.rope_theta, **raw}, "rope_theta", (int, float), path, "file")
    language = LanguageConfig(
        hidden_size=number("hidden_size"),
        num_layers=number("num_hidden_layers"),
        num_heads=heads,
        intermediate_size=number("intermediate_size"),
        vocab_size=number("vocab_size"),
        max_positions=number("max_position_embeddings"),
        rms_norm_eps=float(field(raw, "rms_norm_eps", (int, float), path, "file")),
        rope_theta=float(theta),
        hidden_act=field(raw, "hidden_act", str, path, "file"),
    )
    sam2 = options.sam2 or Sam2Config()
    if number("out_dim") != sam2.hidden_size:
        raise InputError(f"{path}: out_dim {number('out_dim')} must equal SAM-2's width {sam2.hidden_size}")
    vision = _clip_config(_clip_folder(raw, options), number("mm_vision_select_layer"))
    if number("mm_hidden_size") != vision.hidden_size:
        raise InputError(f"{path}: mm_hidden_size differs from the CLIP tower's width {vision.hidden_size}")
    return ModelConfig(language, vision, sam2, Behaviour())


def _kind(raw: dict[str, Any], path: Path) -> str:
    names = field(raw, "architectures", list, path, "file")
    kinds = {"GLUSForCausalLM": "released", "LISAForCausalLM": "lisa"}
    if len(names) != 1 or names[0] not in kinds:
        raise InputError(f"{path}: architectures {names} is not one of {sorted(kinds)}")
    return kinds[names[0]]


def _clip_folder(raw: dict[str, Any], options: LoadOptions) -> Path:
    source = options.vision_tower or raw.get("mm_vision_tower") or "openai/clip-vit-large-patch14"
    if not isinstance(source, str | Path):
        raise InputError(f"config.json: mm_vision_tower must be a folder or hub id, found {source!r}")
    try:
        return resolve(source, ["config.json"])
    except InputError as error:
        raise InputError(f"the CLIP tower is not in this checkpoint (pass vision_tower=FOLDER): {error}") from None


def _clip_config(folder: Path, select_layer: int) -> VisionConfig:
    path = folder / "config.json"
    raw = expect(read_json(path, "CLIP config"), dict, path, "file")
    if "vision_config" in raw:
        raw = field(raw, "vision_config", dict, path, "file")

    def value(key: str, kind: type, default: Any) -> Any:
        return field(raw, key, kind, path, "file") if key in raw else default

    names = {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "image_size": "image_size",
        "patch_size": "patch_size",
        "hidden_act": "hidden_act",
    }
    # Published CLIP configs leave out fields that equal transformers' defaults (those of ViT-B/32).
    defaults = {
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "intermediate_size": 3072,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
    }
    sizes = {own: value(theirs, type(defaults[own]), defaults[own]) for own, theirs in names.items()}
    return VisionConfig(
        **sizes, layer_norm_eps=float(value("layer_norm_eps", float, 1e-5)), select_layer=select_layer
    )


def _state(folder: Path, raw: dict[str, Any], config: ModelConfig, options: LoadOptions) -> State:
    """All weights of a checkpoint under our names."""
    if raw.get("format") == FORMAT:
        return read_file(folder / WEIGHTS_FILE)
    kind = _kind(raw, folder / "config.json")
    tensors = read_folder(folder)
    state = from_released(tensors, str(folder)) if kind == "released" else LISA.rename(tensors, str(folder))
    if kind == "lisa":
        assert options.sam2_checkpoint is not None  # checked with the config
        path = Path(options.sam2_checkpoint)
        state.update(SAM2.rename(read_file(path), str(path)))
        state.update(fresh_seg_head(config))
    if not any(key.startswith("vision.tower.") for key in state):
        clip = _clip_folder(raw, options)
        state.update(CLIP.rename(read_folder(clip), str(clip)))
    return state


def fresh_seg_head(config: ModelConfig, seed: int = SEG_HEAD_SEED) -> State:
    """A newly initialised [SEG] head; the original starts training with one too (D27), but unseeded."""
    hidden, out = config.language.hidden_size, config.sam2.hidden_size
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out))
    return {f"seg_head.{k}": v.detach() for k, v in head.state_dict().items()}


def fresh_model(config: ModelConfig, tokenizer: GlusTokenizer, seed: int = 0) -> GLUSModel:
    """A newly initialised model (every module's own default), reproducible by seed; no pretrained part."""
    if len(tokenizer) != config.language.vocab_size:
        raise InputError(f"vocab_size {config.language.vocab_size} differs from the tokenizer's {len(tokenizer)}")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return GLUSModel(config, tokenizer.seg_id).eval()


def save_pretrained(
    folder: Path, model: GLUSModel, tokenizer: GlusTokenizer, fingerprint: Fingerprint | None
) -> None:
    """Write our own format, weights bit by bit; config.json, which makes the folder loadable, comes last.

    Raises:
        InputError: the weights are quantised; what they were is gone.
    """
    if quantised(model.language):
        raise InputError("a model loaded with bits=4 or 8 cannot be saved; load it without")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    write_safetensors(folder / WEIGHTS_FILE, model.state_dict())
    content: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model.config.to_dict(),
    }
    if fingerprint is not None:
        content["fingerprint"] = fingerprint.to_dict()
    write_json(folder / "config.json", content)
