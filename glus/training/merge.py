"""From a training checkpoint to a model one can load: shards joined, LoRA folded in (reference glus.md 2.5)."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from glus.api import DTYPES, GLUS
from glus.config import ModelConfig, VisionConfig, from_dict
from glus.errors import InputError
from glus.io import disk_errors, field, read_json, write_json
from glus.modeling.checkpoints import State, check_fit, load_state
from glus.modeling.glus import GLUSModel
from glus.modeling.keys import name_some
from glus.text.tokenizer import GlusTokenizer
from glus.training.checkpointing import (
    BEST,
    COMPLETE,
    FOLDER,
    FORMAT,
    TOKENIZER,
    TRAINER,
    fault_of,
    newest_in,
    steps_in,
)
from glus.training.parameters import LoraSettings, fold_lora
from glus.training.released import TOWER_FOLDER, write_released
from glus.training.shards import read_shards

logger = logging.getLogger(__name__)

Layout = Literal["ours", "released"]
ABOUT_FILE = "training.json"


@dataclass(frozen=True)
class Trained:
    """What `trainer.json` says of a checkpoint.

    Attributes:
        prefix: what precedes the model's names in the trained module.
        dtype: what the weights were held in while training.
        own_tower: CLIP was trained, or has other sizes than the published one.
    """

    step: int
    world_size: int
    prefix: str
    config: ModelConfig
    lora: LoraSettings
    dtype: torch.dtype
    own_tower: bool
    content: dict[str, Any]


def export_checkpoint(
    source: str | Path,
    out: str | Path,
    layout: Layout = "ours",
    dtype: torch.dtype | str | None = None,
    which: Literal["newest", "best"] = "newest",
) -> Path:
    """Write the model of a training checkpoint as a loadable folder.

    Args:
        source: a checkpoint folder, or the log folder of a run, whose `which` checkpoint is taken.
        out: new folder, or an earlier export, which is replaced once the new one is whole.
        layout: `ours`, or `released` for tools that read published GLUS folders.
        dtype: of the weights; default: that of the training. Under `released` it concerns the language model.

    Returns:
        The checkpoint that was exported.

    Raises:
        InputError: the checkpoint is incomplete, damaged, mixed or of something else; names the file.
    """
    if layout not in ("ours", "released"):
        raise InputError(f"layout must be ours or released, found {layout!r}")
    checkpoint = find_checkpoint(Path(source), which)
    trained = read_trained(checkpoint)
    target = Path(out)
    _check_target(target)
    tokenizer = _tokenizer(checkpoint, trained.config)
    state = read_weights(checkpoint, trained)
    stored = _dtype(dtype) or trained.dtype
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        with disk_errors(target):
            temporary.mkdir(parents=True)
            if layout == "ours":
                with torch.device("meta"):
                    model = GLUSModel(trained.config, tokenizer.seg_id)
                load_state(model, state, stored, source=str(checkpoint))
                GLUS(model.eval(), tokenizer).save_pretrained(temporary)
            else:
                own_tower = target / TOWER_FOLDER if trained.own_tower else None
                write_released(temporary, trained.config, state, tokenizer, stored, own_tower)
            write_json(temporary / ABOUT_FILE, trained.content)
            _swap(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("exported %s to %s (%s layout)", checkpoint, target, layout)
    return checkpoint


def find_checkpoint(source: Path, which: Literal["newest", "best"] = "newest") -> Path:
    """A complete checkpoint: `source` itself, or the one wanted of the run that logs there.

    Raises:
        InputError: there is none, or it is incomplete or damaged; says what was found.
    """
    folder = source if source.name == FOLDER else source / FOLDER
    named = source if (source / TRAINER).is_file() or (source / COMPLETE).is_file() else None
    if named is None and which == "best":
        best = folder / BEST
        if not best.is_file():
            raise InputError(f"no checkpoint of {source} was validated: {best} is missing; export the newest")
        named = folder / f"step-{field(read_json(best, 'best checkpoint'), 'step', int, best, 'file'):08d}"
    if named is not None:
        fault = fault_of(named)
        if fault is not None:
            raise InputError(f"{named} cannot be exported: {fault}")
        return named
    newest = newest_in(folder)
    if newest is not None:
        return newest
    count = len(steps_in(folder))
    found = f"{count} checkpoints, none of them complete" if count else "no checkpoint"
    raise InputError(f"{source} holds {found}; give a folder .../{FOLDER}/step-..., or the log folder of a run")


def read_trained(checkpoint: Path) -> Trained:
    """Read `trainer.json`.

    Raises:
        InputError: it is missing, of another format, or not of a GLUS training.
    """
    path = checkpoint / TRAINER
    content = read_json(path, "checkpoint description")
    if field(content, "format", int, path, "file") != FORMAT:
        raise InputError(f"{path}: written by another version of glus (format {content['format']}, not {FORMAT})")
    about = field(content, "about", dict, path, "file")
    config = from_dict(ModelConfig, field(about, "model", dict, path, "about"), f"{path}: about.model")
    train = field(about, "config", dict, path, "about")
    lora = from_dict(LoraSettings, train["lora"], f"{path}: lora") if "lora" in train else LoraSettings(r=0)
    loop = train.get("loop", train)
    precision = field(loop, "precision", str, path, "about.config")
    return Trained(
        step=field(content, "step", int, path, "file"),
        world_size=field(content, "world_size", int, path, "file"),
        prefix=field(content, "weight_prefix", str, path, "file"),
        config=config,
        lora=lora,
        dtype=DTYPES.get(precision, torch.float32),
        own_tower=train.get("trainable") != "released" or config.vision != VisionConfig(),
        content=content,
    )


def read_weights(checkpoint: Path, trained: Trained) -> State:
    """The model's weights under our names, LoRA folded in; trained ones in fp32 where the checkpoint has them.

    Raises:
        InputError: the shards are not of the step and ranks that `trainer.json` names, or do not fit its model.
    """
    shards = read_shards(checkpoint)
    for name in ("step", "world_size"):
        if getattr(shards, name) != getattr(trained, name):
            raise InputError(
                f"{checkpoint}: the shards are of {name} {getattr(shards, name)}, {TRAINER} says "
                f"{getattr(trained, name)}: a mixed checkpoint"
            )
    own = {k.removeprefix(trained.prefix): v for k, v in shards.state.items() if k.startswith(trained.prefix)}
    if len(own) < len(shards.state):
        apart = name_some(k for k in shards.state if not k.startswith(trained.prefix))
        logger.info("left out, not part of the model: %s", apart)
    # In fp32, so that a frozen matrix and its adapters are rounded once, together.
    own = {k: v.float() if ".base_layer." in k else v for k, v in own.items()}
    merged = fold_lora(own, trained.lora.scaling)
    with torch.device("meta"):
        wanted = {k: tuple(v.shape) for k, v in GLUSModel(trained.config, seg_id=0).state_dict().items()}
    check_fit(wanted, merged, str(checkpoint))
    return merged


def _tokenizer(checkpoint: Path, config: ModelConfig) -> GlusTokenizer:
    folder = checkpoint.parent.parent / TOKENIZER
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: the tokenizer the run was started with")
    tokenizer = GlusTokenizer.from_folder(folder, config.behaviour.strip_around_added_tokens)
    if len(tokenizer) != config.language.vocab_size:
        raise InputError(f"{folder} has {len(tokenizer)} tokens, the model {config.language.vocab_size}")
    return tokenizer


def _dtype(name: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(name, str):
        if name not in DTYPES:
            raise InputError(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)}")
        return DTYPES[name]
    return name


def _check_target(target: Path) -> None:
    """Only an export may be replaced."""
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; choose a folder for the model")
    if target.is_dir() and any(target.iterdir()) and not (target / ABOUT_FILE).is_file():
        raise InputError(f"{target} is not empty and no earlier export; choose another folder")


def _swap(new: Path, target: Path) -> None:
    """Put `new` in the target's place.

    Folders cannot be replaced in one step everywhere: killed between the two renames, this leaves no target, but
    the earlier export whole in `.tmp-PID-old-NAME` beside it; exporting again writes it anew.
    """
    old = target.with_name(f".tmp-{os.getpid()}-old-{target.name}")
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)
