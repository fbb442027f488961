"""`python -m glus merge`: a training checkpoint, of GLUS or of a selector, becomes a model one can load."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from glus.inference.infer_command import PRECISIONS, HelpFormatter
from glus.io import expect, read_json
from glus.training.checkpointing import FOLDER, TRAINER
from glus.training.merge import export_checkpoint

EXPORTERS = {"glus": "glus.training.merge:export_checkpoint", "selector": "kfs.recipe:export_selector"}
"""By the task of a checkpoint; they take the arguments of `export_checkpoint`."""


def parser(program: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=program,
        description="Put the shards of a training checkpoint together, fold LoRA in, and write one folder that "
        "GLUS.from_pretrained and the --version option read; of a selector, one that its commands read. "
        "Needs neither a GPU nor DeepSpeed.",
        formatter_class=HelpFormatter,
    )
    p.add_argument("--weight", required=True, help="log folder of a run, or one of its checkpoints/step-...")
    p.add_argument("--save_path", required=True, help="folder for the model; an earlier export there is replaced")
    p.add_argument(
        "--layout",
        choices=["ours", "released"],
        default="ours",
        help="released: pickled shards and configuration as published, for other tools; without CLIP",
    )
    p.add_argument("--precision", choices=PRECISIONS, help="of the stored weights; default: that of the training")
    p.add_argument("--best", action="store_true", help="the checkpoint that validated best, not the newest")
    return p


def exporter(source: Path) -> Callable[..., Path]:
    """What exports the checkpoints of `source`, by the task they are of; GLUS's where there are none."""
    folder = source if source.name == FOLDER else source / FOLDER
    for file in (source / TRAINER, *sorted(folder.glob(f"step-*/{TRAINER}"))):
        if file.is_file():
            task = expect(read_json(file, "checkpoint description"), dict, file, "file").get("task")
            module, function = EXPORTERS.get(str(task), EXPORTERS["glus"]).split(":")
            found: Callable[..., Path] = getattr(importlib.import_module(module), function)
            return found
    return export_checkpoint


def main(argv: Sequence[str], program: str = "python -m glus merge") -> int:
    args = parser(program).parse_args(argv)
    export = exporter(Path(args.weight))
    which = "best" if args.best else "newest"
    checkpoint = export(args.weight, args.save_path, args.layout, args.precision, which)
    sys.stdout.write(f"{checkpoint} -> {Path(args.save_path)}\n")
    return 0
