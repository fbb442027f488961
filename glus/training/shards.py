"""The weights in a DeepSpeed checkpoint folder, read without DeepSpeed and without running what its files hold.

DeepSpeed's own `zero_to_fp32` unpickles them with full rights. The files (DeepSpeed 0.19.8):

    mp_rank_00_model_states.pt                     ZeRO 0 to 2: the module as it computes
    zero_pp_rank_N_mp_rank_00_model_states.pt      ZeRO 3: buffers, and rank N's share of the frozen weights
    [bf16_]zero_pp_rank_N_mp_rank_00_optim_states.pt   ZeRO 1 to 3: rank N's share of the fp32 weights
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glus.errors import InputError
from glus.io import expect, field
from glus.modeling.checkpoints import State, unpickle
from glus.modeling.keys import name_some

WHOLE_MODEL = "mp_rank_00_model_states.pt"
_MODEL_SHARE = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_model_states\.pt")
_OPTIMIZER_SHARE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")


DEEPSPEED_CLASSES = (
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
"""(module, name) of all that the files hold beside tensors and plain values."""

# None of it is needed here. Integers, because `ZeroStageEnum` is compared with numbers.
_STAND_INS = [type(name, (int,), {"__module__": module}) for module, name in DEEPSPEED_CLASSES]


@dataclass(frozen=True)
class ShardedWeights:
    """What a checkpoint folder holds.

    Attributes:
        state: every weight under the name the trained module gives it; trained ones are the optimizer's fp32
            copies (ZeRO 1 to 3), all others as the module stores them.
        step: optimizer steps taken.
        world_size: ranks that wrote it.
        stage: ZeRO stage.
    """

    state: State
    step: int
    world_size: int
    stage: int


def read_shards(folder: Path) -> ShardedWeights:
    """Put the weights of a checkpoint together.

    Raises:
        InputError: a file is missing, truncated, of another step or run, or no DeepSpeed file; the message
            names it.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    optimizer = _ranked(folder, names, _OPTIMIZER_SHARE)
    if WHOLE_MODEL in names:
        models = [folder / WHOLE_MODEL]
    else:
        models = _ranked(folder, names, _MODEL_SHARE)
    if not models:
        raise InputError(f"{folder} is no DeepSpeed checkpoint: it has neither {WHOLE_MODEL} nor ZeRO-3 shares")
    parts = [_mapping(path) for path in models]
    step, world_size = _agreed(models, parts, "global_steps"), _agreed(models, parts, "dp_world_size")
    if models[0].name != WHOLE_MODEL and len(models) != world_size:
        raise InputError(f"{folder}: {len(models)} of {world_size} model files are there; the others are missing")
    module = _tensors(parts[0], "module", models[0])
    shapes = parts[0].get("param_shapes")
    if shapes is None:
        if optimizer:
            raise InputError(f"{optimizer[0]} does not belong to {models[0].name}, which was saved without ZeRO")
        return ShardedWeights(module, step, world_size, 0)
    if len(optimizer) != world_size:
        raise InputError(
            f"{folder}: {len(optimizer)} of {world_size} optimizer files (*_optim_states.pt) are there; "
            "copy the checkpoint again with the files of every rank"
        )
    shares = [_optimizer_part(path, world_size) for path in optimizer]
    _agreed(optimizer, [{"optimizer step": _steps(share)} for share in shares], "optimizer step")
    stage = _agreed(optimizer, shares, "zero_stage")
    if (stage == 3) == (models[0].name == WHOLE_MODEL):
        raise InputError(f"{optimizer[0]} (ZeRO {stage}) does not belong to {models[0].name}")
    groups = _shapes(shapes, models[0])
    if stage == 3:
        state = _gather_spread(optimizer, shares, groups)
        state.update(_gather_frozen(models, parts))
        buffers = expect(parts[0].get("buffer_names"), list, models[0], "buffer_names")
        state.update({key: module[key] for key in buffers if key in module})
        return ShardedWeights(state, step, world_size, 3)
    trained = _gather_partitions(optimizer, shares, groups)
    _check_copies(trained, module, optimizer, models[0])
    return ShardedWeights({**module, **trained}, step, world_size, stage)


def _ranked(folder: Path, names: Sequence[str], pattern: re.Pattern[str]) -> list[Path]:
    """Files of ranks 0, 1, ... in order."""
    found: dict[int, str] = {}
    for name in names:
        match = pattern.fullmatch(name)
        if match and int(match[1]) in found:
            raise InputError(
                f"{folder / name} and {found[int(match[1])]} are of the same rank: a mixed checkpoint"
            )
        if match:
            found[int(match[1])] = name
    absent = sorted(set(range(len(found))) - set(found))
    if absent:
        raise InputError(f"{folder}: the file of rank {absent[0]} like {next(iter(found.values()))} is missing")
    return [folder / found[rank] for rank in sorted(found)]


def _mapping(path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is truncated, or no file written by DeepSpeed; copy the checkpoint again")
    content: dict[str, Any] = expect(unpickle(path, _STAND_INS), dict, path, "file")
    return content


def _optimizer_part(path: Path, world_size: int) -> dict[str, Any]:
    part: dict[str, Any] = field(_mapping(path), "optimizer_state_dict", dict, path, "file")
    counts = part.get("partition_count")
    count = max(counts) if isinstance(counts, list) and counts else counts
    if count != world_size:
        raise InputError(
            f"{path} was written by {count} ranks, the checkpoint by {world_size}: a mixed checkpoint"
        )
    return part


def _agreed(paths: Sequence[Path], parts: Sequence[Mapping[str, Any]], name: str) -> int:
    """The value of a field that all files must share."""
    for path, part in zip(paths, parts, strict=True):
        value = field(part, name, (int, type(None)), path, "file")
        if value != parts[0][name]:
            raise InputError(
                f"{path} is of {name} {value}, {paths[0].name} of {parts[0][name]}: a mixed checkpoint"
            )
    agreed = parts[0][name]
    return int(agreed) if agreed is not None else 0


def _steps(share: Mapping[str, Any]) -> int | None:
    """Steps the optimizer counted for its first weight, where it says so."""
    base = share.get("base_optimizer_state", share.get("optimizer_state_dict"))
    states = base.get("state") if isinstance(base, dict) else None
    first = next(iter(states.values()), None) if isinstance(states, dict) else None
    count = first.get("step") if isinstance(first, dict) else None
    return None if count is None else int(count)


def _tensors(part: Mapping[str, Any], name: str, path: Path) -> State:
    values: dict[str, Any] = field(part, name, dict, path, "file")
    for key, value in values.items():
        expect(value, torch.Tensor, path, f"{name}[{key}]")
    return dict(values)


def _shapes(value: Any, path: Path) -> list[dict[str, torch.Size]]:
    """Names and shapes of the trained weights, one mapping per parameter group."""
    for group in expect(value, list, path, "param_shapes"):
        for key, shape in expect(group, dict, path, "param_shapes").items():
            expect(shape, torch.Size, path, f"param_shapes[{key}]")
    return list(value)


def _flat(share: Mapping[str, Any], name: str, path: Path) -> list[torch.Tensor]:
    values: list[torch.Tensor] = field(share, name, list, path, "optimizer_state_dict")
    for value in values:
        if expect(value, torch.Tensor, path, name).ndim != 1:
            raise InputError(f"{path}: {name} must hold flat tensors")
    return values


def _gather_partitions(
    paths: Sequence[Path], shares: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, torch.Size]]
) -> State:
    """ZeRO 1 and 2: each group is one flat vector cut into equal parts, padded at its end."""
    flats = [_flat(s, "single_partition_of_fp32_groups", p) for p, s in zip(paths, shares, strict=True)]
    gaps = shares[0].get("param_alignment_paddings") or [[0] * len(group) for group in groups]
    if any(len(flat) != len(groups) for flat in flats) or [len(g) for g in gaps] != [len(g) for g in groups]:
        raise InputError(f"{paths[0]}: its parameter groups are not those of the model file")
    state: State = {}
    for number, group in enumerate(groups):
        vector = torch.cat([flat[number] for flat in flats])
        used = sum(shape.numel() for shape in group.values()) + sum(gaps[number])
        # DeepSpeed aligns to 2 * ranks and, on some devices, each rank's part once more.
        if not used <= vector.numel() <= used + 4 * len(paths) * len(paths) + 8 * len(paths):
            raise InputError(f"{paths[0]}: group {number} has {vector.numel()} values for {used} of the model")
        offset = 0
        for (key, shape), gap in zip(group.items(), gaps[number], strict=True):
            state[key] = vector[offset : offset + shape.numel()].view(shape)
            offset += shape.numel() + gap
    return state


def _gather_spread(
    paths: Sequence[Path], shares: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, torch.Size]]
) -> State:
    """ZeRO 3: every weight is cut into equal parts, one per rank, the last one padded."""
    ranks = [torch.cat(_flat(s, "fp32_flat_groups", p)) for p, s in zip(paths, shares, strict=True)]
    sizes = {key: shape for group in groups for key, shape in group.items()}
    wanted = sum(_part(shape, len(ranks)) for shape in sizes.values())
    for path, rank in zip(paths, ranks, strict=True):
        if rank.numel() != wanted:
            raise InputError(f"{path} has {rank.numel()} fp32 values, the model file says {wanted}: mixed")
    state: State = {}
    offset = 0
    for key, shape in sizes.items():
        length = _part(shape, len(ranks))
        state[key] = torch.cat([rank[offset : offset + length] for rank in ranks])[: shape.numel()].view(shape)
        offset += length
    return state


def _gather_frozen(paths: Sequence[Path], parts: Sequence[Mapping[str, Any]]) -> State:
    """ZeRO 3: the frozen weights, cut as the trained ones."""
    state: State = {}
    for key, shape in (parts[0].get("frozen_param_shapes") or {}).items():
        cuts = []
        for path, part in zip(paths, parts, strict=True):
            cut = field(part.get("frozen_param_fragments"), key, torch.Tensor, path, "frozen_param_fragments")
            if cut.numel() != _part(shape, len(parts)):
                raise InputError(f"{path}: {key} has {cut.numel()} values for a share of {tuple(shape)}: mixed")
            cuts.append(cut)
        state[key] = torch.cat(cuts)[: shape.numel()].view(shape)
    return state


def _part(shape: torch.Size, ranks: int) -> int:
    return math.ceil(shape.numel() / ranks)


def _check_copies(trained: State, module: State, optimizer: Sequence[Path], model: Path) -> None:
    """The module computes with the fp32 weights rounded; anything else is a mixture of two saves."""
    absent = set(trained) - set(module)
    if absent:
        raise InputError(f"{model} lacks {name_some(absent)}, which the optimizer files hold: a mixed checkpoint")
    for key, value in trained.items():
        copy = module[key]
        if copy.shape != value.shape or not torch.equal(value.to(copy.dtype), copy):
            raise InputError(
                f"{key} differs between {model.name} and {', '.join(p.name for p in optimizer[:2])} ... in "
                f"{model.parent}: files of different saves are mixed, or one is damaged"
            )
