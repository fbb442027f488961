"""What a training run changes: the trainable set, LoRA, and the plain weights back (reference glus.md, 6.2, 2.5).

LoRA is put into the language model in place, so the rest of the model keeps its names. A layer
`language.decoder.layers.0.self_attn.q_proj` with LoRA has, instead of `.weight`,

    .base_layer.weight             the frozen matrix, (out, in)
    .lora_A.default.weight         (r, in)
    .lora_B.default.weight         (out, r)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from glus.errors import InputError
from glus.modeling.checkpoints import State

LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a decoder layer, the only ones LoRA may be put into."""

ADAPTER = "default"
_LORA = re.compile(rf"(.+)\.(?:base_layer|lora_([AB])\.{ADAPTER})\.weight")

GROUPS = (
    ("LoRA", r".*\.lora_[AB]\..*"),
    ("embed_tokens and lm_head", r"language\.(lm_head|decoder\.embed_tokens)\..*"),
    ("vision projector", r"vision\.projector\..*"),
    ("[SEG] head", r"seg_head\..*"),
    ("SAM-2 mask decoder", r"sam\.sam_mask_decoder\..*"),
    ("language layers", r"language\..*"),
    ("CLIP tower", r"vision\..*"),
    ("SAM-2 image encoder", r"sam\.image_encoder\..*"),
    ("SAM-2 memory", r"sam\.(memory_|maskmem_|no_mem_).*"),
    ("SAM-2 other", r"sam\..*"),
    ("score head", r"score_head\..*"),
)
"""(group, names) of GLUS and of the selector; the first match wins. GLUS's recipe trains the first five."""

RELEASED_GROUPS = frozenset(name for name, _ in GROUPS[:5])


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters of the language model; `r` 0 means none. Defaults are the released ones (6.1)."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        if self.r < 0 or self.alpha < 1:
            raise InputError(f"lora needs r from 0 and alpha from 1, found r {self.r}, alpha {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora.dropout must lie in 0..1 (1 excluded), found {self.dropout}")
        unknown = sorted(set(self.targets) - set(LORA_LAYERS))
        if unknown or not self.targets:
            raise InputError(f"lora.targets must be some of {', '.join(LORA_LAYERS)}; found {self.targets}")

    @property
    def scaling(self) -> float:
        """Factor of B A in the sum with the frozen matrix."""
        return self.alpha / self.r if self.r else 0.0


class GroupCount(NamedTuple):
    """Trainable parameters of one group."""

    group: str
    parameters: int


def add_lora(model: nn.Module, lora: LoraSettings, seed: int = 0) -> None:
    """Put adapters into the language model's layers, and nowhere else; `r` 0 changes nothing.

    A is drawn by `seed`, B is zero, so the model's output stays the same. Everything but the adapters of the
    language model is frozen there: call `select_trainable` afterwards.

    Raises:
        InputError: peft is not installed.
    """
    if lora.r == 0:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError('LoRA needs peft: pip install -e ".[train]" (or train without: lora.r 0)') from None
    layers = rf"decoder\.layers\.\d+\.(?:self_attn|mlp)\.(?:{'|'.join(lora.targets)})"
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none", target_modules=layers
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.get_submodule("language"), ADAPTER)


def select_trainable(
    model: nn.Module, which: Literal["released", "all"], released: frozenset[str] = RELEASED_GROUPS
) -> None:
    """Say which parameters learn: the groups of the released recipe (6.2), or all.

    GLUS's mask decoder is marked as a whole, as in the original; `conv_s0/1`, the IoU and object-score heads and
    three of its four hyper-networks get no gradient from GLUS's losses (1.11).
    """
    if which not in ("released", "all"):
        raise InputError(f"trainable must be released or all, found {which!r}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(which == "all" or group_of(name) in released)


def group_of(name: str) -> str:
    """The line of the trainable table a parameter belongs to."""
    return next(group for group, names in GROUPS if re.fullmatch(names, name))


def trainable_table(model: nn.Module) -> list[GroupCount]:
    """Trainable parameters by group, groups without any left out."""
    counts = dict.fromkeys((group for group, _ in GROUPS), 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # ZeRO-3 leaves an empty tensor here and the true number in ds_numel.
            counts[group_of(name)] += int(getattr(parameter, "ds_numel", parameter.numel()))
    return [GroupCount(group, count) for group, count in counts.items() if count]


def trainable_text(model: nn.Module) -> str:
    """`trainable_table` for the screen, with the total and its share of the model."""
    table = trainable_table(model)
    total = sum(count for _, count in table)
    whole = sum(int(getattr(p, "ds_numel", p.numel())) for p in model.parameters())
    lines = [*table, GroupCount("total", total), GroupCount("of the model's", whole)]
    width = max(len(group) for group, _ in lines)
    return "\n".join(f"{group:<{width}}  {count:>15,}" for group, count in lines)


def merged_state(model: nn.Module) -> State:
    """The model's weights under the names of a model without LoRA, adapters folded in; the model stays as it is.

    Raises:
        RuntimeError: the parameters are spread over ranks (ZeRO-3); merge a checkpoint instead.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise RuntimeError("under ZeRO-3 no rank holds the weights; export a checkpoint (glus.training.merge)")
    scalings = {
        f"{name}.weight": float(module.scaling[ADAPTER])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "base_layer")
    }
    return fold_lora(model.state_dict(), scalings)


def fold_lora(state: Mapping[str, torch.Tensor], scaling: Mapping[str, float] | float) -> State:
    """W + scaling * B A in fp32 arithmetic, rounded once to W's dtype, under W's plain name.

    Args:
        scaling: one factor, or one per plain key.

    Raises:
        InputError: an adapter with one half missing, or of shapes that do not multiply.
    """
    plain: State = {}
    adapters: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        found = _LORA.fullmatch(key)
        if found is None:
            plain[key] = value
        elif found[2] is None:
            plain[f"{found[1]}.weight"] = value
        else:
            adapters.setdefault(f"{found[1]}.weight", {})[found[2]] = value
    for key, halves in adapters.items():
        if set(halves) != {"A", "B"} or key not in plain:
            raise InputError(f"the LoRA adapter of {key} is incomplete")
        weight, down, up = plain[key], halves["A"].float(), halves["B"].float()
        if up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != tuple(weight.shape):
            shapes = f"{tuple(up.shape)} x {tuple(down.shape)} for {tuple(weight.shape)}"
            raise InputError(f"the LoRA adapter of {key} does not fit its layer: {shapes}")
        factor = scaling if isinstance(scaling, float) else scaling[key]
        plain[key] = torch.addmm(weight.float(), up, down, alpha=factor).to(weight.dtype)
    return plain
