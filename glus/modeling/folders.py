"""What checkpoint folders of every model have in common: ours written and described, foreign ones understood."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError

from glus.config import LanguageConfig, VisionConfig, from_dict
from glus.errors import InputError
from glus.io import expect, field, read_json, write_json
from glus.modeling.checkpoints import State, read_folder, write_safetensors
from glus.modeling.keys import CLIP
from glus.modeling.multimodal import MultimodalModel
from glus.text.tokenizer import GlusTokenizer

T = TypeVar("T")

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = ["tokenizer.model", "added_tokens.json"]
SAFETENSORS = ["*.safetensors", "*.safetensors.index.json"]
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


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


def write_own(
    folder: Path, name: str, model: MultimodalModel, tokenizer: GlusTokenizer, extra: Mapping[str, Any]
) -> None:
    """Write our own format, weights bit by bit; config.json, which makes the folder loadable, comes last.

    Args:
        name: of the format, such as `glus`.
        extra: more fields of `config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    write_safetensors(folder / WEIGHTS_FILE, model.state_dict())
    sizes = asdict(model.config)
    head = {"format": name, "format_version": FORMAT_VERSION, "model": sizes}
    write_json(folder / "config.json", {**head, **extra})


def own_config(kind: type[T], raw: dict[str, Any], path: Path) -> T:
    """The sizes of a model in our own format."""
    version = field(raw, "format_version", int, path, "file")
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format_version {version} is unknown to this version of glus ({FORMAT_VERSION})")
    return from_dict(kind, field(raw, "model", dict, path, "file"), f"{path}: model")


def seeded(seed: int, make: Callable[[], T]) -> T:
    """What `make` draws from torch's generator on the CPU, reproducibly; the generator stays as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return make()


def build_empty(make: Callable[[], T], path: Path) -> T:
    """A model without weights; raises InputError naming `path`, whose sizes cannot be built."""
    unbuildable = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
    try:
        with torch.device("meta"):
            return make()
    except (*unbuildable, StrictDataclassError) as error:
        raise InputError(f"{path}: no model can be built with these sizes ({error!r})") from None


def check_vocabulary(folder: Path, tokenizer: GlusTokenizer, vocab_size: int) -> None:
    """Raise InputError where a tokenizer has other tokens than the model."""
    if len(tokenizer) != vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, config.json says vocab_size {vocab_size}"
        )


def kind_of(raw: dict[str, Any], path: Path, kinds: Mapping[str, str]) -> str:
    """Which of `kinds`, by architecture, a foreign `config.json` is of."""
    names = field(raw, "architectures", list, path, "file")
    if len(names) != 1 or names[0] not in kinds:
        raise InputError(f"{path}: architectures {names} is not one of {sorted(kinds)}")
    return kinds[names[0]]


def require(raw: dict[str, Any], path: Path, supported: Mapping[str, Any]) -> None:
    """Fields of a foreign config whose other values (or absence) mean another model."""
    for key, value in supported.items():
        if raw.get(key) != value:
            raise InputError(f"{path}: {key} {raw.get(key)!r} is not supported, only {value!r}")


def language_config(raw: dict[str, Any], path: Path) -> LanguageConfig:
    """The LLaMA of a foreign `config.json`, parsed by ourselves.

    transformers maps the `model_type` "llava" to another class and silently takes default sizes (D48).
    """

    def number(key: str) -> int:
        return int(field(raw, key, int, path, "file"))

    heads = number("num_attention_heads")
    if raw.get("num_key_value_heads", heads) != heads:
        raise InputError(f"{path}: num_key_value_heads other than num_attention_heads is not supported")
    theta = field({"rope_theta": LanguageConfig.rope_theta, **raw}, "rope_theta", (int, float), path, "file")
    return LanguageConfig(
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


def tower_folder(raw: dict[str, Any], given: str | Path | None) -> Path:
    """Where the CLIP tower of a foreign checkpoint lies: as `given`, else as its config says."""
    source = given or raw.get("mm_vision_tower") or "openai/clip-vit-large-patch14"
    if not isinstance(source, str | Path):
        raise InputError(f"config.json: mm_vision_tower must be a folder or hub id, found {source!r}")
    try:
        return resolve(source, ["config.json"])
    except InputError as error:
        raise InputError(f"the CLIP tower is not in this checkpoint (pass vision_tower=FOLDER): {error}") from None


def tower_state(folder: Path) -> State:
    """CLIP's weights under our names."""
    return CLIP.rename(read_folder(folder), str(folder))


def vision_config(raw: dict[str, Any], path: Path, tower: Path, pool: int = VisionConfig.pool) -> VisionConfig:
    """The vision part of a foreign `config.json`, whose sizes its CLIP folder knows."""
    vision = _clip_config(tower, int(field(raw, "mm_vision_select_layer", int, path, "file")), pool)
    if field(raw, "mm_hidden_size", int, path, "file") != vision.hidden_size:
        raise InputError(f"{path}: mm_hidden_size differs from the CLIP tower's width {vision.hidden_size}")
    return vision


# Of our field: theirs, and transformers' default (ViT-B/32), which published CLIP configs leave out.
_CLIP_FIELDS: dict[str, tuple[str, int | str]] = {
    "hidden_size": ("hidden_size", 768),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "intermediate_size": ("intermediate_size", 3072),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 32),
    "hidden_act": ("hidden_act", "quick_gelu"),
}


def _clip_config(folder: Path, select_layer: int, pool: int) -> VisionConfig:
    path = folder / "config.json"
    raw = expect(read_json(path, "CLIP config"), dict, path, "file")
    if "vision_config" in raw:
        raw = field(raw, "vision_config", dict, path, "file")
    sizes: dict[str, Any] = {
        own: field({key: default, **raw}, key, type(default), path, "file")
        for own, (key, default) in _CLIP_FIELDS.items()
    }
    eps = field({"layer_norm_eps": 1e-5, **raw}, "layer_norm_eps", float, path, "file")
    return VisionConfig(**sizes, layer_norm_eps=float(eps), select_layer=select_layer, pool=pool)
