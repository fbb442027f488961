"""Selectors in and out of folders: ours, Chat-UniVi's (where training starts), and the original's merged ones.

Ours has "format": "kfs" in its `config.json`, one safetensors file with CLIP's weights among them, and the
tokenizer. The other two leave CLIP out (reference kfs.md, section 3); a Chat-UniVi folder has neither a score head
nor `[SCORE]`, which are drawn anew, by seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glus.errors import InputError
from glus.io import expect, field, read_json
from glus.modeling.checkpoints import State, load_state, read_file, read_folder
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
from glus.modeling.keys import name_some
from glus.text.tokenizer import IM_START_TOKEN, GlusTokenizer
from kfs.merging import MergingConfig
from kfs.model import CHAT_UNIVI, RELEASED, SelectorConfig, SelectorModel, make_score_head
from kfs.prompts import SCORE_TOKEN

FORMAT = "kfs"
START, MERGED = "Chat-UniVi", "KFS"
KINDS = {"ChatUniViLlamaForCausalLM": START, "VISAForCausalLM": MERGED}
SUPPORTED = {"rope_scaling": None, "mm_vision_select_feature": "patch"}
FP32_PARTS = ("score_head.",)
"""Kept in fp32 whatever the rest is in: bf16's steps make ties of scores near 1."""
FRESH_SEED = 0
NEW_ROW_STD = 0.02
WORDS = ("language.decoder.embed_tokens.weight", "language.lm_head.weight")


@dataclass(frozen=True)
class Selector:
    """A selector ready to score, or to train from."""

    model: SelectorModel
    tokenizer: GlusTokenizer

    @property
    def config(self) -> SelectorConfig:
        return self.model.config


def load_selector(
    folder: str | Path,
    *,
    vision: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Selector:
    """Load a selector, in evaluation mode.

    Args:
        folder: ours, a Chat-UniVi folder or a merged KFS folder; or the hub id of one.
        vision: folder or hub id of CLIP, which foreign folders leave out; default: the one their config names.
        dtype: of the weights; those of the score head stay fp32.

    Raises:
        InputError: nothing loadable there, or anything in it that does not fit: keys and shapes by name.
    """
    folder = resolve(folder, ["config.json", "tokenizer_config.json", *TOKENIZER_FILES])
    path = folder / "config.json"
    raw = expect(read_json(path, "checkpoint config"), dict, path, "file")
    if raw.get("format") == FORMAT:
        if vision is not None:
            raise InputError(f"{folder} is complete; do not pass vision")
        config = own_config(SelectorConfig, raw, path)
        tokenizer, state = selector_tokenizer(folder), read_file(folder / WEIGHTS_FILE)
    elif raw.get("format") is not None:
        raise InputError(f"{folder} is a {raw['format']} model, no key-frame selector")
    else:
        config, tokenizer, state = _foreign(folder, raw, vision)
    check_vocabulary(folder, tokenizer, config.language.vocab_size)
    model = build_empty(lambda: SelectorModel(config, tokenizer.added_id(SCORE_TOKEN)), path)
    load_state(model, state, dtype, device, str(folder), FP32_PARTS)
    return Selector(model.eval(), tokenizer)


def save_selector(selector: Selector, folder: str | Path) -> None:
    """Write our own format, weights bit by bit."""
    write_own(Path(folder), FORMAT, selector.model, selector.tokenizer, {})


def fresh_selector(config: SelectorConfig, tokenizer: GlusTokenizer, seed: int = 0) -> Selector:
    """A newly initialised selector (every module's own default), reproducible by seed."""
    check_vocabulary(Path("selector"), tokenizer, config.language.vocab_size)
    model = seeded(seed, lambda: SelectorModel(config, tokenizer.added_id(SCORE_TOKEN)))
    return Selector(model.eval(), tokenizer)


def selector_tokenizer(folder: Path) -> GlusTokenizer:
    """The tokenizer of a folder that has `[SCORE]`."""
    return GlusTokenizer.from_folder(folder, legacy=None, required=(SCORE_TOKEN,))


def _foreign(
    folder: Path, raw: dict[str, Any], vision: str | Path | None
) -> tuple[SelectorConfig, GlusTokenizer, State]:
    path = folder / "config.json"
    kind = kind_of(raw, path, KINDS)
    # The flag, not the architecture's name, is what the original goes by: training leaves the name as it was.
    merged = kind == MERGED or raw.get("train_mask_decoder") is True
    config = foreign_config(raw, path, tower_folder(raw, vision), merged)
    tokenizer = (
        selector_tokenizer(folder) if merged else GlusTokenizer.from_folder(folder, legacy=None, required=())
    )
    if IM_START_TOKEN in tokenizer.added_tokens:
        raise InputError(f"{folder}: a tokenizer with {IM_START_TOKEN} was trained with other prompts than these")
    table = RELEASED if merged else CHAT_UNIVI
    state = table.rename(read_folder(folder), str(folder))
    if not any(key.startswith("vision.tower.") for key in state):
        state.update(tower_state(tower_folder(raw, vision)))
    if merged:
        return config, tokenizer, state
    if SCORE_TOKEN in tokenizer.added_tokens:
        raise InputError(f"{folder}: the tokenizer has {SCORE_TOKEN}, but config.json says there is no score head")
    check_vocabulary(folder, tokenizer, config.language.vocab_size)
    add_score(state, config, folder)
    language = replace(config.language, vocab_size=config.language.vocab_size + 1)
    return replace(config, language=language), tokenizer.adding(SCORE_TOKEN), state


def foreign_config(raw: dict[str, Any], path: Path, tower: Path, merged: bool) -> SelectorConfig:
    """Our config from a foreign `config.json`, of 7B, 13B or any other size.

    Raises:
        InputError: a field missing, or with a value that means another model.
    """
    require(raw, path, SUPPORTED)
    clusters = field(raw, "config", dict, path, "file")
    if field(clusters, "use_cluster", bool, path, "config") is not True:
        raise InputError(f"{path}: config.use_cluster False is not supported: a selector merges tokens")
    rates = (field(clusters, f"spatial_cluster_rate{level}", int, path, "config") for level in range(3))
    temporal = field(clusters, "temporal_cluster_rate", (int, float), path, "config")
    return SelectorConfig(
        language=language_config(raw, path),
        vision=vision_config(raw, path, tower, pool=1),
        merging=MergingConfig(tuple(rates), float(temporal)),
        out_dim=field(raw, "out_dim", int, path, "file") if merged else SelectorConfig.out_dim,
    )


def add_score(state: State, config: SelectorConfig, folder: Path) -> None:
    """A row for `[SCORE]` at both ends of the language model and a head, as the original draws them (2.8)."""
    absent = [key for key in WORDS if key not in state]
    if absent:
        raise InputError(f"{folder} does not fit the model: {len(absent)} missing: {name_some(absent)}")
    hidden = config.language.hidden_size

    def draw() -> tuple[list[torch.Tensor], nn.Module]:
        rows = [NEW_ROW_STD * torch.randn(1, hidden) for _ in WORDS]
        return rows, make_score_head(hidden, config.out_dim)

    rows, head = seeded(FRESH_SEED, draw)
    for key, row in zip(WORDS, rows, strict=True):
        old = state[key]
        wanted = (config.language.vocab_size, hidden)
        if tuple(old.shape) != wanted:
            raise InputError(f"{folder} does not fit the model: {key} has shape {tuple(old.shape)}, not {wanted}")
        state[key] = torch.cat([old, row.to(old.dtype)])
    state.update({f"score_head.{key}": value.detach() for key, value in head.state_dict().items()})
