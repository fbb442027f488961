"""Frozen configuration objects: sizes of the model, and the behaviours one may switch.

Everything a `config.json` or a `configs/*.yaml` may say is a field here; an unknown key is an error. Defaults
are those of the released 7B model (reference glus.md, section 1).
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar

import yaml

from glus.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class LanguageConfig:
    """The LLaMA decoder (section 1.2)."""

    hidden_size: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    intermediate_size: int = 11008
    vocab_size: int = 32004
    max_positions: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    hidden_act: str = "silu"


@dataclass(frozen=True)
class VisionConfig:
    """The CLIP tower and its token pooling (section 1.3)."""

    hidden_size: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    intermediate_size: int = 4096
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    select_layer: int = -2
    pool: int = 4

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise InputError(f"vision.image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if (self.image_size // self.patch_size) ** 2 % self.pool:
            raise InputError(f"vision.pool {self.pool} does not divide the number of patches")
        if not -self.num_layers <= self.select_layer <= -1:
            raise InputError(f"vision.select_layer {self.select_layer} must lie in -{self.num_layers}..-1")

    @property
    def tokens_per_image(self) -> int:
        """Positions one frame takes in the LLM's input (64 in the released model)."""
        return (self.image_size // self.patch_size) ** 2 // self.pool


@dataclass(frozen=True)
class Sam2Config:
    """The SAM-2 path (sections 1.7 to 1.10); the defaults are hiera-L."""

    image_size: int = 1024
    trunk_dim: int = 144
    trunk_heads: int = 2
    stages: tuple[int, ...] = (2, 6, 36, 4)
    windows: tuple[int, ...] = (8, 4, 16, 8)
    global_blocks: tuple[int, ...] = (23, 33, 43)
    background_size: int = 7
    hidden_size: int = 256
    memory_dim: int = 64
    memory_slots: int = 7
    memory_layers: int = 4
    memory_ffn: int = 2048
    memory_dropout: float = 0.1
    fuser_layers: int = 2
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_ffn: int = 2048
    iou_hidden: int = 256
    prompt_mask_channels: int = 16

    def __post_init__(self) -> None:
        if self.image_size < 256 or self.image_size % 64:
            raise InputError(f"sam2.image_size must be 256 or more and a multiple of 64, found {self.image_size}")
        if len(self.stages) != 4 or len(self.windows) != 4:
            raise InputError("sam2.stages and sam2.windows must have four entries each")

    @property
    def embed_size(self) -> int:
        """Side of the image embedding, the coarsest map (64 at image size 1024)."""
        return self.image_size // 16

    @property
    def low_res_size(self) -> int:
        """Side of the low-res logits (256 at image size 1024)."""
        return self.image_size // 4


@dataclass(frozen=True)
class Behaviour:
    """Switches for what the released system does (reference glus.md: C1-C12 and the *keep* rows of section 9).

    The defaults are what trained GLUS weights need, with the accuracy defects repaired. `Behaviour.preset
    ("released")` is the released inference script to the letter, including the two repaired ones:
    `reset_memory_gamma` (C11, D7) and `fp32_islands` (C10, D52).
    """

    strip_around_added_tokens: bool = True
    """C1: text touching an added token loses its white space before sentencepiece sees it."""
    lower_case: bool = True
    """C2: the expression is lower-cased inside the question."""
    strip_period: bool = True
    """C2: one trailing period of the expression is removed (the demo notebook does not)."""
    answer_trailing_space: bool = True
    """C3, D8: the forced answer ends in a lone space token, whose state becomes the [SEG] embedding."""
    token_pooling: Literal["consecutive", "grid"] = "consecutive"
    """C4: average 4 consecutive row-major patches, or 2x2 neighbourhoods."""
    clip_view: Literal["centre", "pad", "squash"] = "centre"
    """C5, D44: what CLIP sees of a frame: its centre crop, the padded whole, or the whole without its aspect."""
    memory_features: Literal["conditioned", "raw"] = "conditioned"
    """C6, D11: the map the memory encoder reads; SAM-2 itself feeds the raw one."""
    memory_temporal_encoding: bool = False
    """C7, D11: add SAM-2's temporal code per memory slot."""
    object_pointers: bool = False
    """C7, D11: attend to SAM-2's object pointers of remembered frames."""
    conditioning_frame: bool = False
    """C7, D11: always attend to the memory of the pass's first frame."""
    object_score_gating: bool = False
    """C7: blank the mask where SAM-2's object score says the object is absent."""
    stability_fallback: bool = True
    """C9, D47: outside training, replace an unstable single mask by the best of three."""
    fp32_islands: bool = True
    """C10, D52: compute dense position code, memory mask and the [SEG] arg-max in fp32 under a lower dtype."""
    reset_memory_gamma: bool = False
    """C11, D7: overwrite the memory encoder's layer scales by 1e-6, as the original's loader does by accident."""
    seg_decision: Literal["argmax", "always"] = "argmax"
    """D10, D53: a frame whose next token is not [SEG] gets a blank mask; "always" takes its embedding anyway."""

    def __post_init__(self) -> None:
        _check_choices(self)

    @staticmethod
    def preset(name: str) -> Behaviour:
        """`corrected` (the default) or `released` (the released script, level (a) of section 9)."""
        if name == "corrected":
            return Behaviour()
        if name == "released":
            return Behaviour(fp32_islands=False, reset_memory_gamma=True)
        raise InputError(f"unknown compat preset {name!r}; choose corrected or released")


@dataclass(frozen=True)
class InferenceConfig:
    """How a clip is walked through (reference glus.md, section 7)."""

    context_frames: int = 4
    """0 for a model trained without them, such as those of the paper's ablation."""
    query_frames: int = 4
    mem_stride: int = 3
    """C8, D12: 3 at inference, 1 in training."""
    use_memory: bool = True
    context_choice: Literal["middle", "linspace"] = "middle"
    """C12: middle of equal segments (the script) or evenly spaced with both ends (the demo notebook)."""
    question: int = 0
    """Which of the four question templates is asked."""

    def __post_init__(self) -> None:
        _check_choices(self)
        for name, least in (("context_frames", 0), ("query_frames", 1), ("mem_stride", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if not 0 <= self.question <= 3:
            raise InputError(f"question must be 0..3, found {self.question}")


@dataclass(frozen=True)
class ModelConfig:
    """All sizes of a GLUS model, its behaviour, and how it has learned to walk through a clip."""

    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    sam2: Sam2Config = field(default_factory=Sam2Config)
    behaviour: Behaviour = field(default_factory=Behaviour)
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _check_choices(config: Any) -> None:
    """A misspelt choice would otherwise count as the other one."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            _convert(hint, getattr(config, name), name)


def from_dict(kind: type[T], data: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `kind` from parsed JSON or YAML, strictly.

    Raises:
        InputError: an unknown key, or a value of the wrong type; `where` names the file in the message.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: expected a mapping, found {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in set(data) - known)
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}")
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    return kind(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise InputError(f"{where} must be one of {typing.get_args(hint)}, found {value!r}")
        return value
    if origin is UnionType:  # `X | None`
        return None if value is None else _convert(typing.get_args(hint)[0], value, where)
    if origin is tuple:
        return _convert_list(typing.get_args(hint)[0], value, where)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise InputError(f"{where} must be a mapping, found {value!r}")
        return value
    if hint is float and (type(value) is int or _is_exponent(value)):
        return float(value)
    if type(value) is not hint:
        raise InputError(f"{where} must be {hint.__name__}, found {value!r}")
    return value


def _is_exponent(value: Any) -> bool:
    """`3e-4`, which YAML 1.1 reads as text because it has no point."""
    return isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value) is not None


def _convert_list(hint: type, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or (hint is int and not all(type(v) is int for v in value)):
        kind = {int: "integers", str: "texts"}.get(hint, "values")
        raise InputError(f"{where} must be a list of {kind}, found {value!r}")
    return tuple(_convert(hint, item, f"{where}[{position}]") for position, item in enumerate(value))


def load_yaml(kind: type[T], path: str | Path) -> T:
    """Read a `configs/*.yaml` file into the dataclass `kind`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"config file {path} is not valid YAML: {error}") from None
    return from_dict(kind, {} if data is None else data, str(path))
