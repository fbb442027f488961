"""Checkpoints of a run: written beside, then swapped in; found again by themselves; kept by count.

    <log_dir>/checkpoints/step-00000100/    DeepSpeed's files of module and optimizer
        rank-0.pt ...                       per rank: generators and the task's own state
        trainer.json                        step, ranks, configuration
        complete                            sizes and CRC-32 of all files; written last
    <log_dir>/checkpoints/best.json         which step validated best

The folder has another name until `complete` lies in it, so a killed run leaves either a whole checkpoint or none
(D34). Generators, contrastive bank and position are part of it (D37).
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glus.errors import InputError
from glus.io import disk_errors, field, read_json, write_json
from glus.training.config import CheckpointConfig, differing_fields, without_places
from glus.training.engine import Engine, load_file
from glus.training.launch import Place, barrier, gather
from glus.training.task import Task

logger = logging.getLogger(__name__)

FOLDER, COMPLETE, TRAINER, BEST = "checkpoints", "complete", "trainer.json", "best.json"
TOKENIZER = "tokenizer"
"""Folder beside `checkpoints`, of the model trained there."""
FORMAT = 1
_STEP = re.compile(r"step-(\d{8})")
_CHUNK = 1 << 22
_BEST_FIELDS = (("step", int), ("score", (int, float)))


@dataclass(frozen=True)
class Best:
    """The best validation so far; `score` is that of `Validation`, for GLUS J&F."""

    step: int
    score: float


@dataclass(frozen=True)
class RunFacts:
    """What a checkpoint says of its run (`trainer.json`).

    Attributes:
        identity: the configuration that decides the numbers; a run resumes under no other.
        about: more to know without this run: full configuration, model configuration.
    """

    task: str
    world_size: int
    identity: dict[str, Any]
    about: dict[str, Any]


def generators() -> dict[str, Any]:
    """The state of every global random generator, as tensors and plain values."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_generators(state: Mapping[str, Any]) -> None:
    """Continue exactly where `generators` was taken."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class Checkpoints:
    """The checkpoints of one run.

    Args:
        log_dir: of the run; nothing is made before the first save.
    """

    def __init__(self, log_dir: Path, config: CheckpointConfig, facts: RunFacts, place: Place) -> None:
        self.folder = log_dir / FOLDER
        self.config = config
        self.facts = facts
        self.place = place

    def save(self, engine: Engine, task: Task, step: int, best: Best | None) -> Path:
        """Write the state after `step`; every rank calls this.

        Returns:
            The folder, complete.
        """
        target = self.folder / f"step-{step:08d}"
        with disk_errors(target):
            write_state(self.folder / f".tmp-{target.name}", engine, task, step, self.facts, self.place, best)
            if self.place.is_main:
                if target.exists():  # damaged, or it would have been resumed from
                    shutil.rmtree(target)
                os.replace(self.folder / f".tmp-{target.name}", target)
                if best is not None:  # for people and merging; a run goes on by what `trainer.json` says
                    write_json(self.folder / BEST, asdict(best))
                self._forget(best)
        barrier()
        return target

    def _forget(self, best: Best | None) -> None:
        """Delete what is beyond `keep`, and leftovers of killed saves."""
        kept = set(sorted(self.steps())[-self.config.keep :]) | ({best.step} if best else set())
        for step in set(self.steps()) - kept:
            path = self.folder / f"step-{step:08d}"
            # Not complete from its first moment on, so that a kill here leaves no half of a checkpoint.
            (path / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(path)
        for path in self.folder.glob(".tmp-step-*"):
            shutil.rmtree(path)

    def forget_after(self, step: int) -> None:
        """Delete what lies behind the checkpoint a run resumes from: it is damaged, and would count as newest."""
        if self.place.is_main:
            for later in self.steps():
                if later > step:
                    shutil.rmtree(self.folder / f"step-{later:08d}")

    def steps(self) -> list[int]:
        """Steps of which there is a folder, complete or not."""
        return steps_in(self.folder)

    def newest(self) -> Path | None:
        """The newest complete checkpoint; warns of newer ones that are incomplete or damaged.

        Rank 0 reads them all through, and all ranks get its answer.

        Raises:
            InputError: there are checkpoints but none is whole; to start anew over them is not for us to choose.
        """
        found = gather(self.place, self._newest() if self.place.is_main else None)[0]
        if isinstance(found, str):
            raise InputError(found)
        return found if isinstance(found, Path) else None

    def _newest(self) -> Path | str | None:
        """The newest complete one; what to tell the user where all are damaged; None where there are none."""
        found = newest_in(self.folder)
        if found is not None or not self.steps():
            return found
        newest = self.folder / f"step-{max(self.steps()):08d}"
        return (
            f"{self.folder}: no checkpoint can be resumed from; of the newest, {newest.name}, {fault_of(newest)}. "
            "Put a whole one back, or start anew with --no_resume, which moves the earlier run into a folder"
        )

    def best(self, path: Path) -> Best | None:
        """The best validation when a checkpoint was written, if the checkpoint of that one is still there."""
        file = path / TRAINER
        content = read_json(file, "checkpoint description")
        if "best" in content:
            found = content["best"]
        else:  # of an earlier version of glus
            file = self.folder / BEST
            found = read_json(file, "best checkpoint") if file.is_file() else None
        if found is None:
            return None
        step, score = (field(found, name, kind, file, "best") for name, kind in _BEST_FIELDS)
        return Best(step, float(score)) if step in self.steps() else None

    def load(self, path: Path, engine: Engine, task: Task) -> int:
        """Take up a checkpoint, whole; every rank calls this.

        Returns:
            Its step.

        Raises:
            InputError: it is of another task, configuration or number of ranks; the message names the fields.
        """
        step = self.check(path)
        engine.load(path)
        state = load_file(path / f"rank-{self.place.rank}.pt")
        task.load_state_dict(state["task"])
        restore_generators(state["generators"])
        return step

    def check(self, path: Path) -> int:
        """The step of a checkpoint that this run may take up; see `load`."""
        file = path / TRAINER
        content = read_json(file, "checkpoint description")
        if field(content, "format", int, file, "file") != FORMAT:
            raise InputError(
                f"{file}: written by another version of glus (format {content['format']}, not {FORMAT})"
            )
        if content["task"] != self.facts.task:
            raise InputError(f"{path} is of the task {content['task']!r}, this run is {self.facts.task!r}")
        if content["world_size"] != self.facts.world_size:
            raise InputError(
                f"{path} was written by {content['world_size']} ranks, this run has {self.facts.world_size}: "
                f"resume with {content['world_size']}, or start anew (--no_resume or another log folder)"
            )
        # Through JSON, as the stored ones went: tuples become lists. The model besides, because the identity may
        # name it by a path, with another model there now.
        mine, theirs = _as_json(self.facts.identity), field(content, "identity", dict, file, "file")
        differing = differing_fields(without_places(mine), without_places(theirs))
        one, other = (_as_json(about).get("model") for about in (self.facts.about, content.get("about", {})))
        if isinstance(one, dict) and isinstance(other, dict):
            differing += differing_fields(one, other, "model.")
        if differing:
            raise InputError(
                f"{path} is of another configuration: {'; '.join(differing)} (this run's value first). Resume "
                "with the same values, or start anew (--no_resume or another log folder)"
            )
        return int(field(content, "step", int, file, "file"))


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value


def write_state(
    folder: Path,
    engine: Engine,
    task: Task,
    step: int,
    facts: RunFacts,
    place: Place,
    best: Best | None = None,
) -> None:
    """Fill a new folder with the whole state of the run, `complete` last; every rank calls this."""
    if place.is_main:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    barrier()
    engine.save(folder)
    torch.save({"task": task.state_dict(), "generators": generators()}, folder / f"rank-{place.rank}.pt")
    barrier()
    if place.is_main:
        prefix = engine.weight_prefix(task.model)
        content = {"format": FORMAT, "step": step, "weight_prefix": prefix, **asdict(facts)}
        content["best"] = None if best is None else asdict(best)
        write_json(folder / TRAINER, _as_json(content))
        write_json(
            folder / COMPLETE, {path.name: [path.stat().st_size, _sync_crc(path)] for path in _files(folder)}
        )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != COMPLETE)


def _sync_crc(path: Path) -> int:
    """CRC-32 of a file that is safely on the disk afterwards."""
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())
    return _crc(path)


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def move_aside(log_dir: Path) -> None:
    """Put an earlier run's files into a folder of their own, `before-1`, `before-2`, ..."""
    names = (FOLDER, TOKENIZER, "log.jsonl", "tensorboard", "model")
    there = [log_dir / name for name in names if (log_dir / name).exists()]
    if not there:
        return
    number = 1
    while (log_dir / f"before-{number}").exists():
        number += 1
    target = log_dir / f"before-{number}"
    target.mkdir()
    for path in there:
        os.replace(path, target / path.name)
    logger.info("the earlier run is now in %s", target)


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a run's `checkpoints` folder, complete or not."""
    if not folder.is_dir():
        return []
    matches = (_STEP.fullmatch(path.name) for path in folder.iterdir())
    return [int(match[1]) for match in matches if match]


def newest_in(folder: Path) -> Path | None:
    """The newest complete checkpoint there; warns of newer ones that are incomplete or damaged."""
    for step in sorted(steps_in(folder), reverse=True):
        path = folder / f"step-{step:08d}"
        fault = fault_of(path)
        if fault is None:
            return path
        logger.warning("checkpoint %s is left out: %s", path, fault)
    return None


def fault_of(folder: Path) -> str | None:
    """Why a checkpoint cannot be used; None for a complete and undamaged one."""
    if not (folder / COMPLETE).is_file():
        return "it is not complete"
    try:
        listed = read_json(folder / COMPLETE, "marker")
        for name, (size, crc) in listed.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size or _crc(path) != crc:
                return f"{name} is damaged"
    except (InputError, AttributeError, TypeError, ValueError) as error:
        return str(error)
    return None
