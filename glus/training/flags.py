"""Options of the training commands: short cuts to fields of the configuration. Needs no torch.

Long names are the original's where the meaning is the same (reference glus.md 6.6); what had no effect there, or
cannot be chosen here, is refused with a word on why.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from glus.errors import InputError


@dataclass(frozen=True)
class Flag:
    """`--name VALUE` sets the field at `path`, dots between the levels."""

    name: str
    path: str
    kind: type
    help: str


LORA_FLAGS = (
    Flag("lora_r", "lora.r", int, "rank of LoRA; 0 for none"),
    Flag("lora_alpha", "lora.alpha", int, "scale of LoRA"),
    Flag("lora_dropout", "lora.dropout", float, "dropout of LoRA"),
)
LOOP_FLAGS = (
    Flag("precision", "loop.precision", str, "bf16, fp16, fp32 or bf16_autocast"),
    Flag("batch_size", "loop.batch_size", int, "samples per process and micro-batch"),
    Flag("grad_accumulation_steps", "loop.grad_accumulation_steps", int, "micro-batches per step"),
    Flag("lr", "loop.optimizer.lr", float, "highest learning rate"),
    Flag("beta1", "loop.optimizer.beta1", float, "of AdamW"),
    Flag("beta2", "loop.optimizer.beta2", float, "of AdamW"),
    Flag("steps", "loop.steps", int, "optimizer steps of the whole run"),
    Flag("workers", "loop.workers", int, "loader processes per process; the samples stay the same"),
    Flag("seed", "loop.seed", int, "of everything random"),
    Flag("max_minutes", "loop.max_minutes", float, "stop in good order after this time; run again to go on"),
    Flag("zero_stage", "loop.deepspeed.stage", int, "what ZeRO splits among the processes: 0, 1, 2 or 3"),
    Flag("offload", "loop.deepspeed.offload", str, "none, or cpu: keep optimizer (and, in ZeRO-3, weights) there"),
    Flag("save_every", "loop.checkpoints.every", int, "steps between checkpoints"),
    Flag("keep", "loop.checkpoints.keep", int, "checkpoints that stay, beside the best"),
    Flag("validate_every", "loop.validate_every", int, "steps between validations; 0 for none"),
)
FLAGS = (
    Flag("version", "model.version", str, "checkpoint to start from: folder or hub id (LISA-7B-v1, GLUS, ours)"),
    Flag("vision-tower", "model.vision_tower", str, "folder or hub id of CLIP, for checkpoints without it"),
    Flag("vision_pretrained", "model.sam2_checkpoint", str, "sam2_hiera_large.pt, for LISA, which has no SAM-2"),
    Flag("image_size", "model.image_size", int, "side of SAM-2's input; default: the checkpoint's"),
    Flag("dataset_dir", "data.dataset_dir", str, "folder that holds mevis, Refer-YouTube-VOS, ..."),
    Flag("refer_video_seg_data", "data.refer_video_seg_data", str, 'data sets, "mevis||refyoutube_vos"'),
    Flag("sample_rates", "data.sample_rates", str, 'their weights, "1,1"'),
    Flag("num_classes_per_sample", "data.num_classes_per_sample", int, "most expressions of a sample"),
    Flag("context_frame_num", "data.context_frame_num", int, "context frames of a sample"),
    Flag("question_frame_num", "data.question_frame_num", int, "query frames of a sample"),
    *LORA_FLAGS,
    Flag("ce_loss_weight", "objective.weights.ce", float, "weight of the cross entropy"),
    Flag("bce_loss_weight", "objective.weights.bce", float, "weight of the masks' cross entropy"),
    Flag("dice_loss_weight", "objective.weights.dice", float, "weight of the Dice loss"),
    Flag("contrastive_loss_weight", "objective.weights.contrastive", float, "weight of the contrastive loss"),
    Flag("compat", "compat", str, "corrected, or released: the original's training to the letter"),
    Flag("trainable", "trainable", str, "released: the original's set; all: everything"),
    *LOOP_FLAGS,
)

EPOCHS = (10, 500)
"""The original's epochs, and steps of each."""

DEAD = {
    "vqa_data": "it had no effect in the original",
    "reason_seg_data": "it had no effect in the original",
    "explanatory": "it had no effect in the original",
    "vis_save_path": "it had no effect in the original's training; overlays of the validation are in TensorBoard",
    "load_in_8bit": "it had no effect in the original's training",
    "load_in_4bit": "it had no effect in the original's training",
    "use_mm_start_end": "images are always framed by their start and end token",
    "train_mask_decoder": "the mask decoder always learns",
    "auto_resume": "resuming is the default; --no_resume starts anew",
    "conv_type": "there is one conversation format",
    "model_max_length": "the limit is the language model's positions, checked per sample (D25)",
    "out_dim": "it follows from SAM-2's width",
    "image_features_num": "it follows from the vision tower's sizes",
    "total_question_frame_num": "it always equals --question_frame_num",
    "sam_config": "sizes of SAM-2 come with the checkpoint, or from the file model.sizes of a new model",
    "zero_to_fp32": "use python -m glus merge",
}
"""Option of the original -> why it is refused."""


def _refusing(dead: Mapping[str, str]) -> type[argparse.Action]:
    class Refuse(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> NoReturn:
            name = (option_string or "").lstrip("-")
            raise InputError(f"--{name} is not an option here: {dead[name]}")

    return Refuse


def parser() -> argparse.ArgumentParser:
    """Options of `python -m glus train`; values are None where not given."""
    p, fields = run_parser(
        "python -m glus train",
        "Train GLUS. Run it as it is, or under deepspeed, torchrun or srun for several processes. A stopped run "
        "goes on when started again, and ends by exporting a loadable model to LOG_DIR/model.",
        "glus",
        FLAGS,
        DEAD,
    )
    fields.add_argument("--use_contrastive_loss", action="store_true", help="add the object contrastive loss")
    fields.add_argument("--not_use_mem_bank", action="store_true", help="train without memory of earlier frames")
    return p


def run_parser(
    program: str, description: str, name: str, flags: Sequence[Flag], dead: Mapping[str, str]
) -> tuple[argparse.ArgumentParser, argparse._ArgumentGroup]:
    """A training command's options, and the group that more of its own may join.

    Args:
        name: default of `--exp_name`.
        dead: option of the original -> why it is refused.
    """
    p = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    p.add_argument("--config", help="YAML with the configuration; the options below come on top")
    p.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="any field of it, by its path"
    )
    where = p.add_argument_group("where")
    where.add_argument("--log_dir", help="folder of the run; default LOG_BASE_DIR/EXP_NAME")
    where.add_argument("--log_base_dir", default="runs", help="default: runs")
    where.add_argument("--exp_name", default=name, help=f"default: {name}")
    where.add_argument("--no_resume", action="store_true", help="start anew; an earlier run there is moved aside")
    where.add_argument("--resume", action="store_true", help="go on with a stopped run; always done")
    what = p.add_argument_group("what to do instead of training")
    what.add_argument(
        "--dry_run", action="store_true", help="build all, show what learns and time a step; write nothing"
    )
    what.add_argument(
        "--replay", metavar="FILE", help="run the batches of a saved failure again and show its losses"
    )
    fields = p.add_argument_group("fields of the configuration")
    for flag in flags:
        shown = f"{flag.help} [{flag.path}]"
        fields.add_argument(f"--{flag.name}", type=flag.kind, dest=flag.path, metavar="X", help=shown)
    fields.add_argument("--lora_target_modules", help='layers of LoRA, "q_proj,v_proj" [lora.targets]')
    fields.add_argument("--epochs", type=int, help="steps = epochs x steps_per_epoch [loop.steps]")
    fields.add_argument("--steps_per_epoch", type=int, help="see --epochs")
    fields.add_argument("--gradient_checkpointing", action=argparse.BooleanOptionalAction, help="default: on")
    fields.add_argument("--no_eval", action="store_true", help="no validation [loop.validate_every 0]")
    fields.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # older launchers pass it
    for option in dead:
        p.add_argument(f"--{option}", nargs="*", action=_refusing(dead), help=argparse.SUPPRESS)
    return p, fields


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that the options of `parser` set, as nested mappings.

    Raises:
        InputError: see `run_overrides`.
    """
    out: dict[str, Any] = {}
    if args.use_contrastive_loss:
        put(out, "use_contrastive_loss", True)
    if args.not_use_mem_bank:
        put(out, "use_mem_bank", False)
    return run_overrides(args, FLAGS, EPOCHS, out)


def run_overrides(
    args: argparse.Namespace, flags: Sequence[Flag], epochs: tuple[int, int], out: dict[str, Any]
) -> dict[str, Any]:
    """`out` with the fields that the options of `run_parser` set.

    Args:
        epochs: defaults of `--epochs` and `--steps_per_epoch`, where one of them is given.

    Raises:
        InputError: a `--set` that is no FIELD=VALUE; both ways of saying how many steps.
    """
    for flag in flags:
        value = getattr(args, flag.path)
        if value is not None:
            put(out, flag.path, value)
    if args.lora_target_modules is not None:
        put(out, "lora.targets", [name.strip() for name in args.lora_target_modules.split(",")])
    if args.epochs is not None or args.steps_per_epoch is not None:
        if getattr(args, "loop.steps") is not None:
            raise InputError("give --steps, or --epochs and --steps_per_epoch, not both")
        count = epochs[0] if args.epochs is None else args.epochs
        steps = epochs[1] if args.steps_per_epoch is None else args.steps_per_epoch
        if min(count, steps) < 1:
            raise InputError(f"--epochs and --steps_per_epoch must be at least 1, found {count} and {steps}")
        put(out, "loop.steps", count * steps)
    if args.gradient_checkpointing is not None:
        put(out, "gradient_checkpointing", args.gradient_checkpointing)
    if args.no_eval:
        put(out, "loop.validate_every", 0)
    for text in args.set:
        name, found, value = text.partition("=")
        if not found or not name:
            raise InputError(f"--set needs FIELD=VALUE, found {text!r}")
        put(out, name, _value(text, value))
    return out


def _value(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: the value is not valid YAML") from None


def put(content: dict[str, Any], path: str, value: Any) -> None:
    """Set `content[a][b]...` for the path `a.b...`."""
    *groups, last = path.split(".")
    for name in groups:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise InputError(f"{path}: {name} is a value, not a group of fields")
    content[last] = value


def log_dir_of(args: argparse.Namespace) -> str:
    """The folder of the run."""
    if args.log_dir is not None:
        return str(args.log_dir)
    return f"{args.log_base_dir}/{args.exp_name}"


def given(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    return parser().parse_args(argv)
