"""`python -m kfs score`: the scores of all frames of a data set, and the key frames that follow from them.

The run is one of `python -m glus infer`: sharded, resumable, on several machines; see `glus.inference.runner`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glus.data.datasets import load_records
from glus.errors import InputError
from glus.inference.infer_command import (
    PRECISIONS,
    HelpFormatter,
    add_run_arguments,
    carry_out,
    check_counts,
    plan_workers,
    run_spec,
)
from glus.inference.items import Item
from glus.io import disk_errors
from glus.launched import launched
from kfs.key_frames import Scores, read_expression, write_forms
from kfs.worker import ScoreStore

WORKER_COMMAND = (sys.executable, "-m", "kfs.worker")
KEY_FRAMES, DETAILED = "key_frames.json", "key_frame_scores.json"


def default_selector() -> str:
    """The tiny selector of the repository this package lies in, from whatever folder the command runs."""
    return str(Path(__file__).resolve().parents[1] / "checkpoints" / "kfs-tiny")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m kfs score",
        description="Score every frame of every (video, expression) of a data set as the place to start from. "
        f"Scores go to VIS_SAVE_PATH/<video>/<exp_id>/<frame>.json; {KEY_FRAMES} (for GLUS) and {DETAILED} (with "
        "all scores) follow when all are there. A run that was stopped continues when started again.",
        formatter_class=HelpFormatter,
    )
    p.add_argument("--version", default=default_selector(), help="selector: folder, or hub id")
    p.add_argument("--vision-tower", help="folder of CLIP, for selectors without it; default: where they say")
    p.add_argument("--precision", choices=PRECISIONS, help="default: bf16 on GPU, fp32 on CPU")
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: GPU if there is one")
    p.add_argument(
        "--max_image_token", type=int, help="images in a prompt, the target's included; default: the selector's"
    )
    p.add_argument(
        "--memory_budget",
        type=float,
        metavar="GIB",
        help="memory to use beside the model; default: by what is free",
    )
    add_run_arguments(p, "scores", "kfs_scores")
    return p


def model_settings(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """What `worker.load_selector` needs."""
    return {name: getattr(args, name) for name in ("version", "vision_tower", "precision")} | {"device": device}


def main(argv: Sequence[str], worker_command: Sequence[str] = WORKER_COMMAND) -> int:
    args = parser().parse_args(argv)
    check_counts(args)
    if args.max_image_token is not None and args.max_image_token < 1:
        raise InputError("--max_image_token must be at least 1")
    items = [
        Item(record) for record in load_records(args.val_set, args.dataset_dir, args.set_name, args.min_frames)
    ]
    check_frame_names(items)
    host = launched(os.environ)
    device, environments = plan_workers(args.device, args.workers, host)
    args.precision = args.precision or ("bf16" if device == "cuda" else "fp32")
    settings = {**model_settings(args, device), "max_image_token": args.max_image_token}
    spec = run_spec(args, settings, items, environments, host, worker_command)
    chosen = items[: args.limit]
    return carry_out(
        chosen,
        replace(spec, store=ScoreStore, doing="scoring"),
        lambda summary: key_frames(chosen, spec.save, summary),
    )


def check_frame_names(items: Sequence[Item]) -> None:
    """Raise an `InputError` unless frames have numbers, which is how the key-frame file names them."""
    for item in items:
        names = item.record.frames
        if not all(name.isascii() and name.isdigit() for name in names) or len(set(map(int, names))) < len(names):
            raise InputError(
                f"video {item.record.video}: frame names must be numbers, no two alike, to be key frames"
            )


def key_frames(items: Sequence[Item], save: Path, summary: Mapping[str, Any]) -> str:
    """Write both forms once everything is scored; returns what to say about it."""
    if not summary["complete"]:
        # what an earlier, shorter run (--limit) left would be taken for the whole
        for name in (KEY_FRAMES, DETAILED):
            with disk_errors(save / name):
                (save / name).unlink(missing_ok=True)
        return f"no {save / KEY_FRAMES} yet: not all expressions are scored"
    scores: Scores = {}
    for item in items:
        record = item.record
        scores.setdefault(record.video, {})[record.exp_id] = read_expression(item.mask_folder(save))
    count = write_forms(scores, save / KEY_FRAMES, save / DETAILED)
    return f"{count} key frames: {save / KEY_FRAMES}; all scores: {save / DETAILED}"
