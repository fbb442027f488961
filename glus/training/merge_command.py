"""`python -m glus merge`: a training checkpoint becomes a model one can load."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from glus.inference.infer_command import PRECISIONS, HelpFormatter
from glus.training.merge import export_checkpoint


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """Options of a command that exports a training checkpoint."""
    p = argparse.ArgumentParser(prog=program, description=description, formatter_class=HelpFormatter)
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


def carry_out(p: argparse.ArgumentParser, export: Callable[..., Path], argv: Sequence[str]) -> int:
    """Parse and export; `export` takes the arguments of `export_checkpoint`."""
    args = p.parse_args(argv)
    which = "best" if args.best else "newest"
    checkpoint = export(args.weight, args.save_path, args.layout, args.precision, which)
    sys.stdout.write(f"{checkpoint} -> {Path(args.save_path)}\n")
    return 0


def main(argv: Sequence[str]) -> int:
    p = parser(
        "python -m glus merge",
        "Put the shards of a training checkpoint together, fold LoRA in, and write one folder that "
        "GLUS.from_pretrained and the --version option read. Needs neither a GPU nor DeepSpeed.",
    )
    return carry_out(p, export_checkpoint, argv)
