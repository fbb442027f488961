"""From a training checkpoint to a model one can load: shards joined, LoRA folded in (reference glus.md 2.5)."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import nn

from glus.api import DTYPES, GLUS
from glus.config import ModelConfig, VisionConfig, from_dict
from glus.errors import InputError
from glus.io import disk_errors, field, read_json, write_json
from glus.modeling.checkpoints import State, check_fit, load_state
from glus.modeling.folders import check_vocabulary
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
C = TypeVar("C")


@dataclass(frozen=True)
class Trained(Generic[C]):
    """What `trainer.json` says of a checkpoint.

    Attributes:
        prefix: what precedes the model's names in the trained module.
        config: sizes of the model, an object of the class that was asked for.
        dtype: what the weights were held in while training.
        content: the whole file.
    """

    step: int
    world_size: int
    prefix: str
    config: C
    lora: LoraSettings
    dtype: torch.dtype
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
    trained = read_trained(checkpoint, ModelConfig)
    config, target = trained.config, Path(out)
    check_target(target)
    folder = tokenizer_folder(checkpoint)
    tokenizer = GlusTokenizer.from_folder(folder, config.behaviour.strip_around_added_tokens)
    check_vocabulary(folder, tokenizer, config.language.vocab_size)
    state = read_weights(checkpoint, trained, lambda: GLUSModel(config, tokenizer.seg_id))
    stored = dtype_of(dtype) or trained.dtype
    with replaced(target) as temporary:
        if layout == "ours":
            with torch.device("meta"):
                model = GLUSModel(config, tokenizer.seg_id)
            load_state(model, state, stored, source=str(checkpoint))
            GLUS(model.eval(), tokenizer).save_pretrained(temporary)
        else:
            own_tower = target / TOWER_FOLDER if _has_own_tower(trained) else None
            write_released(temporary, config, state, tokenizer, stored, own_tower)
        write_json(temporary / ABOUT_FILE, trained.content)
    logger.info("exported %s to %s (%s layout)", checkpoint, target, layout)
    return checkpoint


def _has_own_tower(trained: Trained[ModelConfig]) -> bool:
    """CLIP was trained, or has other sizes than the published one."""
    all_trained = trained.content["about"]["config"].get("trainable") != "released"
    return all_trained or trained.config.vision != VisionConfig()


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


def read_trained(checkpoint: Path, kind: type[C]) -> Trained[C]:
    """Read `trainer.json`.

    Args:
        kind: configuration class of the model that was trained.

    Raises:
        InputError: it is missing, of another format, or not of such a training.
    """
    path = checkpoint / TRAINER
    content = read_json(path, "checkpoint description")
    if field(content, "format", int, path, "file") != FORMAT:
        raise InputError(f"{path}: written by another version of glus (format {content['format']}, not {FORMAT})")
    about = field(content, "about", dict, path, "file")
    config = from_dict(kind, field(about, "model", dict, path, "about"), f"{path}: about.model")
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
        content=content,
    )


def read_weights(checkpoint: Path, trained: Trained[Any], build: Callable[[], nn.Module]) -> State:
    """The model's weights under our names, LoRA folded in; trained ones in fp32 where the checkpoint has them.

    Args:
        build: makes the model whose weights they must be.

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
        wanted = {k: tuple(v.shape) for k, v in build().state_dict().items()}
    check_fit(wanted, merged, str(checkpoint))
    return merged


def tokenizer_folder(checkpoint: Path) -> Path:
    """Where the run's tokenizer lies; raises an InputError if it does not."""
    folder = checkpoint.parent.parent / TOKENIZER
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: the tokenizer the run was started with")
    return folder


def dtype_of(name: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by its short name."""
    if isinstance(name, str):
        if name not in DTYPES:
            raise InputError(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)}")
        return DTYPES[name]
    return name


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the target's place at the end of the block; of a failure none stays."""
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        with disk_errors(target):
            temporary.mkdir(parents=True)
            yield temporary
            _swap(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(target: Path) -> None:
    """Only an export may be replaced; raises an InputError for anything else."""
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
