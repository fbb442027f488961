"""`python -m glus merge`: a training checkpoint becomes a model one can load."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from glus.inference.infer_command import PRECISIONS, HelpFormatter
from glus.training.merge import export_checkpoint


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m glus merge",
        description="Put the shards of a training checkpoint together, fold LoRA in, and write one folder that "
        "GLUS.from_pretrained and the --version option read. Needs neither a GPU nor DeepSpeed.",
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


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    checkpoint = export_checkpoint(
        args.weight, args.save_path, args.layout, args.precision, "best" if args.best else "newest"
    )
    sys.stdout.write(f"{checkpoint} -> {Path(args.save_path)}\n")
    return 0
