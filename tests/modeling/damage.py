"""Ways to damage a checkpoint folder, each a function of the folder."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from folders import write_json
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], Any]
RELEASED_KEY = "lm_head.weight"
SHARD, OTHER_SHARD = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
INDEX = "pytorch_model.bin.index.json"


class RunsCode:
    """Unpickling this creates a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


def edit_json(name: str, change: Callable[[Any], Any]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        changed = change(content)
        write_json(folder / name, content if changed is None else changed)

    return damage


def put(*path: str, value: Any) -> Damage:
    """Set a field of config.json."""

    def change(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = value

    return edit_json("config.json", change)


def drop(*path: str) -> Damage:
    def change(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        del content[path[-1]]

    return edit_json("config.json", change)


def edit_safetensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        state = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}
        change(state)
        save_file(state, folder / "model.safetensors")

    return damage


def edit_shard(change: Callable[[dict[str, torch.Tensor]], Any], name: str = SHARD) -> Damage:
    def damage(folder: Path) -> None:
        state = torch.load(folder / name, weights_only=True)
        change(state)
        torch.save(state, folder / name)

    return damage


def truncate(name: str, share: float = 0.6) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def replace_by(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def code_in(name: str, legacy: bool) -> Damage:
    def damage(folder: Path) -> None:
        content = {RELEASED_KEY: torch.zeros(2), "extra": RunsCode(folder / "code-ran")}
        if legacy:
            (folder / name).write_bytes(pickle.dumps(content))
        else:
            torch.save(content, folder / name)

    return damage


def both(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def rename_shard(key: str, target: str) -> Damage:
    return edit_json(INDEX, lambda index: index["weight_map"].update({key: target}))
