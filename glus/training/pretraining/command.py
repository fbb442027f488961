"""`python -m glus pretrain`: what a small GLUS learns before `python -m glus train` (see `task`)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from glus.api import GLUS
from glus.config import from_dict
from glus.data.synthetic.source import Reading
from glus.errors import InputError
from glus.training.build import starting_model
from glus.training.config import LoopConfig, ModelSource, loop_identity, merge, read_content
from glus.training.launch import join
from glus.training.pretraining.samples import PretrainingConfig, PretrainingSet, Side
from glus.training.pretraining.task import PretrainingTask
from glus.training.trainer import Trainer, TrainResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run.

    Attributes:
        side: what learns. `language` needs a model that has learned `sight`; `masks` is independent of both: it
            may run at the same time, and `join_sides` makes one model of the two.
        model: where it starts: a folder of ours (`version`), or `sizes` and `tokenizer` of a new model.
    """

    side: Side
    model: ModelSource
    samples: PretrainingConfig = field(default_factory=PretrainingConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if self.loop.deepspeed.stage == 3:
            raise InputError("pretraining exports what a process holds: use loop.deepspeed.stage 0, 1 or 2")


def run(config: PretrainConfig, log_dir: Path, resume: bool = True) -> TrainResult:
    """Pretrain, resuming what is in `log_dir`, and export to `log_dir/model`."""
    place = join()
    glus = starting_model(config.model, config.loop.seed)
    model, tokenizer = glus.model, glus.tokenizer
    samples = PretrainingSet(config.samples, model.config, tokenizer, config.loop.seed, config.side)
    task = PretrainingTask(model, samples)
    identity = {**dataclasses.asdict(config), "loop": loop_identity(config.loop)}
    about = {"config": dataclasses.asdict(config), "model": model.config.to_dict()}
    result = Trainer(task, config.loop, place, log_dir, identity, about).run(resume)
    if place.is_main:
        GLUS(model.eval(), tokenizer).save_pretrained(log_dir / "model")
    return result


def join_sides(language: Path, masks: Path, out: Path) -> None:
    """Write a model with the SAM-2 part of `masks` and all else of `language`, two folders of ours.

    Raises:
        InputError: models of different sizes.
    """
    whole, other = (
        GLUS.from_pretrained(folder, device="cpu", dtype=torch.float32) for folder in (language, masks)
    )
    if whole.config != other.config:
        raise InputError(f"{language} and {masks} are models of different configurations and cannot be joined")
    whole.model.sam.load_state_dict(other.model.sam.state_dict())
    whole.save_pretrained(out)


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    out = argparse.ArgumentParser(
        prog="python -m glus pretrain",
        description="Pretrain a small GLUS on synthetic videos: masks from hints, hints from sentences. Resumes "
        "what is in the log folder; ends with LOG_DIR/model, from which `python -m glus train` goes on.",
    )
    how = out.add_mutually_exclusive_group(required=True)
    how.add_argument("--config", help="YAML, e.g. configs/pretrain_tiny.yaml")
    how.add_argument(
        "--join_sides",
        nargs=2,
        type=Path,
        metavar=("LANGUAGE", "MASKS"),
        help="no training: write LOG_DIR/model with the SAM-2 part of the folder MASKS, the rest of LANGUAGE",
    )
    out.add_argument("--log_dir", required=True, type=Path, help="checkpoints, log.jsonl, model/")
    out.add_argument("--version", help="folder to go on from, instead of a new model")
    out.add_argument("--tokenizer", help="folder of a new model's tokenizer")
    out.add_argument("--side", choices=("sight", "language", "masks"), help="what learns")
    out.add_argument("--steps", type=int, help="optimizer steps of the whole run")
    out.add_argument("--batch_size", type=int, help="samples per step and process")
    out.add_argument("--max_minutes", type=float, help="stop in good order after this; the same command goes on")
    out.add_argument("--mask_frames", type=int, help="frames of the mask side; more than one trains the memory")
    out.add_argument("--looks_only", type=float, help="share of hints that give only the looks of an object")
    out.add_argument("--stills", action="store_true", help="first frames alone, no sentences about motion")
    out.add_argument("--context_frames", type=int, help="of the language side; 0: the twin with a single frame")
    out.add_argument("--expressions", choices=get_args(Reading), help="blind: the twin that reads no sentence")
    out.add_argument("--lr", type=float, help="learning rate")
    out.add_argument("--no_resume", action="store_true", help="do not go on from a checkpoint in LOG_DIR")
    return out


def configuration(args: argparse.Namespace) -> PretrainConfig:
    """The file's configuration, what the options say laid on it."""
    content = read_content(args.config)
    # The first frame of a short video is as good as that of a long one, and quicker to draw.
    stills: dict[str, Any] = {"context_frames": 0, "motion": False, "sentences": 8, "video": {"frames": 8}}

    def asked(*names: str) -> dict[str, Any]:
        return {name: getattr(args, name) for name in names if getattr(args, name) is not None}

    over: dict[str, Any] = {
        "samples": (stills if args.stills else {})
        | asked("mask_frames", "looks_only", "context_frames", "expressions"),
        "loop": asked("steps", "batch_size", "max_minutes") | {"optimizer": asked("lr")},
        "model": asked("tokenizer"),
        **asked("side"),
    }
    content = merge(content, over)
    if args.version is not None:
        content["model"] = {"version": args.version}
    return from_dict(PretrainConfig, content, args.config)


def main(argv: Sequence[str]) -> int:
    """Entry point; status 0 when all steps are done or the time is up."""
    args = parser().parse_args(argv)
    if args.join_sides is not None:
        language, masks = args.join_sides
        join_sides(language, masks, args.log_dir / "model")
        return 0
    result = run(configuration(args), args.log_dir, not args.no_resume)
    sys.stdout.write(json.dumps({"step": result.step, "finished": result.finished}) + "\n")
    return 0
