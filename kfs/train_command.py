"""`python -m kfs train`: train, resume, dry-run or replay, and export what was trained. Options need no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from glus.errors import InputError
from glus.training.flags import LOOP_FLAGS, LORA_FLAGS, Flag, put, run_overrides, run_parser

EPOCHS = (20, 100)
"""The original's epochs, and steps of each."""
FRAME_RANGES = ("rvos_num_frames_sample_range", "univi_sample_frame_range")

FLAGS = (
    Flag("version", "model.version", str, "folder or hub id to start from: Chat-UniVi, or a selector"),
    Flag("vision-tower", "model.vision_tower", str, "folder or hub id of CLIP, for checkpoints without it"),
    Flag("from_glus", "model.from_glus", str, "start with the CLIP tower and the language model of this GLUS"),
    Flag("dataset_dir", "data.dataset_dir", str, "folder that holds mevis, Refer-YouTube-VOS, ..."),
    Flag("rvos_seg_data", "data.rvos_seg_data", str, 'data sets, "mevis_train||refytvos_train"'),
    Flag("rvos_sample_ratio", "data.rvos_sample_ratio", str, 'their weights, "4000||15000"'),
    Flag("iou_path", "data.iou_path", str, "folder of IoU files, or one per data set joined by ||"),
    Flag("joint_path", "data.iou_path", str, "the same: the original reads both sets' from one folder"),
    Flag("rvos_sample_policy", "data.sample_policy", str, "reference frames: uniform (one per segment) or random"),
    Flag("num_classes_per_sample", "data.num_classes_per_sample", int, "most expressions of a sample"),
    Flag("ce_loss_weight", "weights.ce", float, "weight of the cross entropy"),
    Flag("iou_loss_weight", "weights.iou", float, "weight of the scores' error"),
    Flag("compat", "compat", str, "corrected, or released: the original's training to the letter"),
    Flag("trainable", "trainable", str, "released: the original's set; all: everything"),
    Flag("val_dataset", "validation.dataset", str, "held-out data set, e.g. mevis_val"),
    Flag("val_iou_path", "validation.iou_path", str, "folder of its IoU files"),
    *LORA_FLAGS,
    *LOOP_FLAGS,
)

DEAD = {
    "mevis_path": 'give the IoU folders by --iou_path "MEVIS||YOUTUBE", in the order of --rvos_seg_data',
    "youtube_path": 'give the IoU folders by --iou_path "MEVIS||YOUTUBE", in the order of --rvos_seg_data',
    "dataset": "there is one kind of sample; --rvos_seg_data names the data sets",
    "sample_rates": "there is one kind of sample; --rvos_sample_ratio weighs the data sets",
    "explanatory": "it had no effect in the original",
    "vis_save_path": "it had no effect in the original",
    "image_size": "it had no effect in the original",
    "exclude_val": "it had no effect in the original",
    "load_in_8bit": "it had no effect in the original",
    "load_in_4bit": "it had no effect in the original",
    "out_dim": "a Chat-UniVi start takes the original's 256; others: --set model.out_dim=N",
    "rvos_max_image_token": "it is the larger number of --rvos_num_frames_sample_range",
    "model_max_length": "the limit is the language model's positions, checked per sample",
    "use_mm_start_end": "the selector's prompts have no such tokens",
    "train_mask_decoder": "there is no mask decoder",
    "conv_type": "there is one conversation format",
    "auto_resume": "resuming is the default; --no_resume starts anew",
    "val_batch_size": "scoring batches by the memory there is",
    "eval_only": "use python -m kfs score and python -m kfs evaluate",
    "print_freq": "use --set loop.logging.every=N",
    "start_epoch": "a run resumes by its steps",
}
"""Option of the original -> why it is refused."""


def parser() -> argparse.ArgumentParser:
    """The command's options; values are None where not given."""
    p, fields = run_parser(
        "python -m kfs train",
        "Train a key-frame selector on IoU files. Run it as it is, or under deepspeed, torchrun or srun for "
        "several processes. A stopped run goes on when started again, and ends by exporting a loadable selector "
        "to LOG_DIR/model.",
        "kfs",
        FLAGS,
        DEAD,
    )
    for name in FRAME_RANGES:
        fields.add_argument(f"--{name}", metavar="X", help="reference frames of a sample, 8,12 [data.frame_range]")
    fields.add_argument(
        "--balance_sample",
        action=argparse.BooleanOptionalAction,
        help="their number by the original's list, or drawn [data.balance_sample]; default: by the list",
    )
    return p


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that the options set, as nested mappings.

    Raises:
        InputError: a frame range that is not two numbers; see also `run_overrides`.
    """
    out: dict[str, Any] = {}
    for name in FRAME_RANGES:
        if (text := getattr(args, name)) is not None:
            put(out, "data.frame_range", _range(name, text))
    if args.balance_sample is not None:
        put(out, "data.balance_sample", args.balance_sample)
    return run_overrides(args, FLAGS, EPOCHS, out)


def _range(name: str, text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--{name} needs two numbers as in 8,12, found {text!r}")
    return [int(part) for part in parts]


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)  # --help answers before torch is loaded
    from glus.training.config import merge, read_content

    over = overrides(args)
    content = merge(read_content(args.config) if args.config else {}, over)
    starts = ("version", "from_glus", "sizes")
    if any(name in over.get("model", {}) for name in starts):  # an option replaces the start that a file names
        content["model"] = {
            name: value
            for name, value in content["model"].items()
            if name in over["model"] or name not in (*starts, "tokenizer")
        }
    if "model" not in content:
        raise InputError("nothing to start from: give --version or --from_glus, or a --config that has them")
    from glus.training.running import run
    from kfs.recipe import SelectorRecipe, selector_train_config

    return run(SelectorRecipe(selector_train_config(content, args.config or "command line")), args)
