"""Tensors in and out of files, and strict loading: the only way weights enter a model.

Weights are untrusted: pickles are read with `weights_only=True`, index files may not name paths outside their
folder, and every key must fit by name and shape.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from glus.errors import InputError, OutputError
from glus.io import atomic_path, field, read_json, safe_name
from glus.modeling.keys import RELEASED, name_some

State = dict[str, torch.Tensor]

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def from_released(state: Mapping[str, torch.Tensor], source: str = "checkpoint") -> State:
    """Our state from the released key names."""
    return RELEASED.rename(state, source)


def to_released(state: Mapping[str, torch.Tensor], with_clip: bool = False) -> State:
    """The released key names (section 2.4) from our state; CLIP is left out as the original does."""
    foreign = {RELEASED.to_foreign(key): value for key, value in state.items()}
    return {k: v for k, v in foreign.items() if with_clip or "vision_tower" not in k}


def load_state(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    source: str = "checkpoint",
    fp32_parts: tuple[str, ...] = (),
) -> None:
    """Put `state` (our names) into `model`, strictly, and recompute what is not stored.

    Args:
        model: one with `finish_loading`, such as `GLUSModel`.
        dtype: what every weight is cast to; None keeps the stored dtypes (they must then agree).
        fp32_parts: what the names of those begin with that are cast to fp32 instead.

    Raises:
        InputError: a missing, surplus or misshaped key, by name, or a value that is not floating point.
    """
    check_fit({k: tuple(v.shape) for k, v in model.state_dict().items()}, state, source)
    wrong = [k for k, v in state.items() if not v.is_floating_point()]
    if wrong:
        raise InputError(f"{source}: {name_some(wrong)} must be floating point")
    moved = {
        key: value.to(device=device, dtype=torch.float32 if fp32_parts and key.startswith(fp32_parts) else dtype)
        for key, value in state.items()
    }
    if dtype is None and len({v.dtype for v in moved.values()}) > 1:
        raise InputError(f"{source}: stored dtypes differ; say which one to load with dtype=")
    model.load_state_dict(moved, strict=True, assign=True)
    model.finish_loading()  # type: ignore[operator]
    unset = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if unset:
        raise RuntimeError(f"tensors that no checkpoint holds were not recomputed: {unset}")


def check_fit(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, torch.Tensor], source: str) -> None:
    """Compare names and shapes; raises InputError naming what does not fit."""
    faults = []
    missing = set(expected) - set(state)
    surplus = set(state) - set(expected)
    if missing:
        faults.append(f"{len(missing)} missing: {name_some(missing)}")
    if surplus:
        faults.append(f"{len(surplus)} surplus: {name_some(surplus)}")
    for key in sorted(set(expected) & set(state)):
        if tuple(state[key].shape) != expected[key]:
            faults.append(f"{key} has shape {tuple(state[key].shape)}, the config wants {expected[key]}")
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise InputError(f"{source} does not fit the model: {shown}")


def read_folder(folder: Path) -> State:
    """All tensors of a checkpoint folder, single file or shards, safetensors before `.bin`.

    Raises:
        InputError: no weights, a missing shard, or an index and shards that disagree.
    """
    for name, index_name in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if (folder / index_name).is_file():
            return _read_shards(folder, folder / index_name)
        if (folder / name).is_file():
            return read_file(folder / name)
    wanted = ", ".join((*SINGLE_FILES, *INDEX_FILES))
    raise InputError(f"{folder} holds no weights; expected one of {wanted}")


def _read_shards(folder: Path, index: Path) -> State:
    where = field(read_json(index, "shard index"), "weight_map", dict, index, "file")
    shards: dict[str, set[str]] = {}
    for key, shard in where.items():
        if not isinstance(shard, str):
            raise InputError(f"{index}: weight_map[{key!r}] must be a file name")
        shards.setdefault(safe_name(shard, index, f"weight_map[{key!r}]"), set()).add(key)
    absent = [name for name in sorted(shards) if not (folder / name).is_file()]
    if absent:
        raise InputError(f"{folder}: shards named in {index.name} are missing: {', '.join(absent)}")
    state: State = {}
    for name, keys in sorted(shards.items()):
        part = read_file(folder / name)
        if set(part) != keys:
            odd = name_some(set(part) ^ keys)
            raise InputError(f"{folder / name}: its keys disagree with {index.name}: {odd}")
        state.update(part)
    return state


def read_file(path: Path) -> State:
    """Tensors of one `.safetensors`, `.bin` or `.pt` file, memory-mapped where the format allows.

    A `.pt` may wrap its tensors in a dict under `model`, as SAM-2's files do.

    Raises:
        InputError: missing, truncated, not a tensor file, or a pickle that holds anything but tensors.
    """
    if not path.is_file():
        raise InputError(f"weights file not found: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = unpickle(path)
    if isinstance(content, dict) and set(content) == {"model"} and isinstance(content["model"], dict):
        content = content["model"]
    named = isinstance(content, dict) and all(isinstance(key, str) for key in content)
    if not named or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"{path} is no mapping from names to tensors")
    return dict(content)


def unpickle(path: Path, classes: Sequence[type] = (), mapped: bool = True) -> Any:
    """The content of a `.bin` or `.pt` file, read without running anything in it. All pickles come through here.

    Args:
        classes: what the file may name beside tensors and plain values: classes that do nothing when built, or
            harmless stand-ins, which say by `__module__` and name whose place they take.
        mapped: leave tensors in the file until they are used; the file must stay as it is meanwhile.

    Raises:
        InputError: damaged, truncated, or a pickle that names anything else.
    """
    try:
        mapped = mapped and zipfile.is_zipfile(path)
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds objects other than tensors, whose unpickling could run code, or is no weights file "
            "(a web page, a git-lfs pointer?); it is refused: fetch it again, or ask its author for safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise InputError(f"{path} is damaged or truncated, fetch it again ({_first_line(error)})") from None


def _read_safetensors(path: Path) -> State:
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or truncated, fetch it again ({_first_line(error)})") from None


def write_safetensors(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write tensors atomically."""
    with atomic_path(path) as temporary:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary, {"format": "pt"})
        except SafetensorError as error:  # the library's name for a full disk
            raise OutputError(f"cannot write {path}: {_first_line(error)}") from None
        temporary.chmod(0o644)  # the library creates it for its owner alone


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
