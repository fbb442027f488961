"""`python -m kfs annotate`: IoU files, the training targets, from GLUS's masks on a training set (kfs.md, 5.1).

It is `python -m glus eval ... --iou_path` with the places of the data set's files filled in.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from glus.data.datasets import expressions_path, find_layout
from glus.errors import InputError
from glus.evaluation.expression_commands import mevis_main, refytvos_main
from glus.evaluation.frame_ious import ABSENT
from glus.io import disk_errors
from kfs.datasets import NAMES, parse_set


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m kfs annotate",
        description="Compare GLUS's masks on a training set with the true ones and write the IoU of every frame "
        "to <iou_path>/<video>/<expression>.json. Options after these go to python -m glus eval.",
    )
    p.add_argument("--dataset", required=True, help=f"{', '.join(NAMES)}, or <data set>:<split> as in mevis:train")
    p.add_argument("--dataset_dir", type=Path, default="data", help="folder of all data sets (default: data)")
    p.add_argument("--pred_path", type=Path, required=True, metavar="DIR", help="masks that glus infer wrote")
    p.add_argument("--iou_path", type=Path, required=True, metavar="DIR", help="folder for the IoU files")
    p.add_argument(
        "--absent",
        choices=ABSENT,
        default="one",
        help="what a frame counts with neither a true nor a predicted pixel: 1 (default), 0, or null, "
        "which leaves it out of training",
    )
    return p


def main(argv: Sequence[str]) -> int:
    args, more = parser().parse_known_args(argv)
    dataset, split = parse_set(args.dataset)
    expressions = expressions_path(dataset, args.dataset_dir, split)
    layout = find_layout(dataset)
    masks = args.dataset_dir / layout.masks.format(split=split)
    if layout.listed:
        raise InputError(f"data set {dataset} has no training split")
    if not masks.exists():
        raise InputError(
            f"data set {args.dataset}: {masks} is missing; without true masks nothing can be annotated"
        )
    common = ["--iou_path", str(args.iou_path), "--absent", args.absent, *more]
    if masks.suffix != ".json":
        flags = [
            "--meta_exp_path",
            str(expressions),
            "--mask_path",
            str(masks),
            "--pred_path",
            str(args.pred_path),
        ]
        # A frame without a true mask has no IoU, and none is made up for it.
        return refytvos_main([*flags, "--only_annotated", *common], "python -m kfs annotate")
    flags = ["--mevis_exp_path", str(expressions), "--mevis_mask_path", str(masks)]
    flags += ["--mevis_pred_path", str(args.pred_path), "--save_name", str(args.iou_path / "scores.json")]
    with disk_errors(args.iou_path):
        args.iou_path.mkdir(parents=True, exist_ok=True)
    return mevis_main([*flags, *common], "python -m kfs annotate")
