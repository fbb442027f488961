"""`python -m glus infer`: run the expressions of a data set through a model and write their masks."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glus.config import InferenceConfig, from_dict
from glus.data.datasets import DATASETS, load_records
from glus.errors import InputError
from glus.evaluation.parallel import default_workers
from glus.inference.items import Item, items_digest
from glus.inference.runner import WORKER_COMMAND, RunSpec, WorkerDied, run_items
from glus.inference.selection import load_key_frames
from glus.io import expect, field, read_json
from glus.launched import Launched, launched

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16", "fp16")
_SAMPLE = 1 << 20  # bytes hashed at either end of each checkpoint file


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def default_checkpoint() -> str:
    """The tiny checkpoint of the repository this package lies in, from whatever folder the command runs."""
    return str(Path(__file__).resolve().parents[2] / "checkpoints" / "glus-tiny")


_WALK = {
    "context_frame_num": ("context_frames", "context frames"),
    "question_frame_num": ("query_frames", "query frames in a window"),
    "mem_stride": ("mem_stride", "stride of remembered frames"),
}
"""Option -> field of `InferenceConfig`, help."""


def add_model_arguments(p: argparse.ArgumentParser) -> None:
    """Options that every command with a model takes; long names are those of the original."""
    p.add_argument("--version", default=default_checkpoint(), help="checkpoint folder, or hub id")
    p.add_argument("--vision-tower", help="folder of CLIP, for checkpoints without it; default: where they say")
    p.add_argument("--image_size", type=int, help="side of SAM-2's input; default: the checkpoint's")
    p.add_argument("--precision", choices=PRECISIONS, help="default: bf16 on GPU, fp32 on CPU")
    bits = p.add_mutually_exclusive_group()
    bits.add_argument("--load_in_8bit", action="store_true", help="language model in 8 bits (bitsandbytes)")
    bits.add_argument("--load_in_4bit", action="store_true", help="language model in 4 bits (bitsandbytes)")
    p.add_argument(
        "--attention",
        default="sdpa",
        metavar="{sdpa,eager,flash_attention_2}",
        help="of the language model; the last needs flash-attn and a GPU",
    )
    p.add_argument("--compile", action="store_true", help="torch.compile of the parts that are run most")
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: GPU if there is one")
    p.add_argument(
        "--compat", help="corrected, or released: the original's defects too; default: the checkpoint's"
    )
    for name, (_, what) in _WALK.items():
        p.add_argument(f"--{name}", type=int, help=f"{what}; default: what the checkpoint has learned with")
    p.add_argument(
        "--memory_budget",
        type=float,
        metavar="GIB",
        help="memory to use beside the model; default: by what is free",
    )
    p.add_argument("--not_use_mem_bank", action="store_true", help="decode every frame without memory")


def inference_changes(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of `InferenceConfig` that `add_model_arguments` were given; the rest is the checkpoint's.

    Raises:
        InputError: a number that cannot be.
    """
    given = {_WALK[name][0]: getattr(args, name) for name in _WALK if getattr(args, name) is not None}
    if args.not_use_mem_bank:
        given["use_memory"] = False
    InferenceConfig(**given)
    return given


def stored_inference(version: str) -> InferenceConfig:
    """How the model of a checkpoint folder of ours has learned to walk through a clip; the default for others."""
    path = Path(version) / "config.json"
    content = expect(read_json(path, "checkpoint config"), dict, path, "file") if path.is_file() else {}
    model = field(content, "model", dict, path, "file") if "format" in content else {}
    return from_dict(InferenceConfig, model.get("inference", {}), f"{path}: model.inference")


def model_settings(args: argparse.Namespace, device: str | None) -> dict[str, Any]:
    """What `worker.load_glus` needs, from `add_model_arguments`; `device` None is torch's choice."""
    names = ("version", "vision_tower", "image_size", "precision", "compat", "attention", "compile")
    bits = 8 if args.load_in_8bit else 4 if args.load_in_4bit else None
    return {**{name: getattr(args, name) for name in names}, "bits": bits, "device": device}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m glus infer",
        description="Segment every (video, expression) of a data set. Masks go to "
        "VIS_SAVE_PATH/<video>/<exp_id>/<frame>.png (0/255). A run that was stopped continues when started again.",
        formatter_class=HelpFormatter,
    )
    add_model_arguments(p)
    add_run_arguments(p, "masks", "generated")
    p.add_argument("--use_kf", action="store_true", help="start from key frames; needs --score_json")
    p.add_argument("--score_json", help="key frames: {<video>_<exp_id>: frame name}")
    return p


def add_run_arguments(p: argparse.ArgumentParser, what: str, save: str) -> None:
    """Options of every command that runs a data set through a model.

    Args:
        what: it makes; `save` is where they go by default.
    """
    p.add_argument("--dataset_dir", default="data", help="folder that holds mevis, Refer-YouTube-VOS, ...")
    p.add_argument("--val_set", default="mevis", help=f"data set: {', '.join(DATASETS)}")
    p.add_argument("--set_name", default="valid_u", help="split, as the data set names it")
    p.add_argument("--vis_save_path", default=save, help="output folder")
    p.add_argument(
        "--schedule",
        choices=["engine", "reference"],
        default="engine",
        help=f"reference: the original's order of work, for comparison; the {what} are the same",
    )
    p.add_argument("--workers", type=int, help="processes; default: one per GPU, or one on CPU")
    p.add_argument("--min_frames", type=int, default=1, help="leave out shorter videos (the original: 4)")
    p.add_argument("--limit", type=int, help="only the first N items")
    how = p.add_mutually_exclusive_group()
    how.add_argument(
        "--resume", action="store_true", help="continue a stopped run; always done, the flag is optional"
    )
    how.add_argument("--overwrite", action="store_true", help=f"start afresh where {what} of another run lie")


def main(argv: Sequence[str], worker_command: Sequence[str] = WORKER_COMMAND) -> int:
    args = parser().parse_args(argv)
    check_counts(args)
    # Of a hub id the workers find out the rest; of a folder all is known, and written down with the masks.
    known = asdict(stored_inference(args.version)) if os.path.isdir(args.version) else {}
    inference = {**known, **inference_changes(args)}
    items = load_items(args)
    host = launched(os.environ)
    device, environments = plan_workers(args.device, args.workers, host)
    args.precision = args.precision or ("bf16" if device == "cuda" else "fp32")
    settings = {**model_settings(args, device), "inference": inference}
    spec = run_spec(args, settings, items, environments, host, worker_command)
    return carry_out(items[: args.limit], spec, lambda s: f"{s['failures']} frames without [SEG] have blank masks")


def check_counts(args: argparse.Namespace) -> None:
    """Raise an `InputError` unless the numbers among `add_run_arguments`, and the memory budget, are positive."""
    for name in ("workers", "limit", "min_frames"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1")
    if args.memory_budget is not None and not args.memory_budget > 0:
        raise InputError("--memory_budget must be above 0")


def run_spec(
    args: argparse.Namespace,
    settings: Mapping[str, Any],
    items: Sequence[Item],
    environments: Sequence[Mapping[str, str]],
    host: Launched,
    worker_command: Sequence[str],
) -> RunSpec:
    """How to run by `add_run_arguments` and `settings`, which are what the results depend on and the device."""
    job = {
        "threads": int(environments[0]["OMP_NUM_THREADS"]),
        "memory_budget": args.memory_budget,
        "schedule": args.schedule,
    }
    return RunSpec(
        save=Path(args.vis_save_path),
        settings={**settings, **job},
        fingerprint=fingerprint(args, settings, items),
        environments=environments,
        overwrite=args.overwrite,
        host=host,
        worker_command=worker_command,
    )


def fingerprint(args: argparse.Namespace, settings: Mapping[str, Any], items: Sequence[Item]) -> dict[str, Any]:
    """What the masks depend on: not where files lie, nor on what device, how fast or by how many they are made."""
    model = {name: value for name, value in settings.items() if name not in ("device", "attention", "compile")}
    for name in ("version", "vision_tower"):
        model[name] = checkpoint_identity(model[name]) if model[name] else None
    data = {"val_set": args.val_set, "set_name": args.set_name, "items_sha256": items_digest(items)}
    return {"format": 1, "model": model, "data": data}


def load_items(args: argparse.Namespace) -> list[Item]:
    """The data set's records with their key frames."""
    if bool(args.use_kf) != bool(args.score_json):
        raise InputError("--use_kf and --score_json belong together: give both or neither")
    records = load_records(args.val_set, args.dataset_dir, args.set_name, min_frames=args.min_frames)
    if not args.use_kf:
        return [Item(record) for record in records]
    keys = load_key_frames(args.score_json)
    items = [Item(record, keys.index(record.video, record.exp_id, record.frames)) for record in records]
    if items and keys.missing == len(items):
        raise InputError(
            f"{args.score_json} has no entry for any of the {len(items)} expressions; its keys must be "
            f"<video>_<exp_id>, e.g. {records[0].video}_{records[0].exp_id}"
        )
    if keys.missing:
        logger.warning(
            "%s: no entry for %d of %d expressions; they start at frame 0",
            args.score_json,
            keys.missing,
            len(items),
        )
    return items


def plan_workers(
    device: str, workers: int | None, host: Launched | None = None
) -> tuple[str, list[dict[str, str]]]:
    """The device to use and one environment per worker: a GPU each, or a fixed share of the cores.

    Several hosts on one machine share its GPUs and cores, unless SLURM has given each its own.
    """
    host = host or Launched()
    gpus = [] if device == "cpu" else own_gpus(host)
    if device == "cuda" and not gpus:
        raise InputError("--device cuda, but no GPU is visible; use --device cpu, or check nvidia-smi")
    count = workers or max(1, len(gpus))
    if gpus and count > len(gpus):
        raise InputError(f"--workers {count}, but {len(gpus)} GPUs are visible; it is one worker per GPU")
    cores = default_workers()
    if cores == os.cpu_count():
        cores //= host.local_world
    environments = [{"OMP_NUM_THREADS": str(max(1, cores // count))} for _ in range(count)]
    for environment, gpu in zip(environments, gpus, strict=False):
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    return "cuda" if gpus else "cpu", environments


def own_gpus(host: Launched) -> list[str]:
    """The GPUs for this host, as CUDA_VISIBLE_DEVICES names them.

    Raises:
        InputError: more hosts on this machine than GPUs.
    """
    import torch  # takes seconds, and the parent needs it for nothing else

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    gpus = [name.strip() for name in visible.split(",")][:count]
    if not gpus or host.local_world == 1 or "SLURM_GPUS_PER_TASK" in os.environ:
        return gpus
    if len(gpus) < host.local_world:
        raise InputError(
            f"{host.local_world} processes were started on this machine, which shows {len(gpus)} GPUs; start one "
            "process per machine: it runs a worker on every GPU"
        )
    return gpus[host.local_rank :: host.local_world]


def checkpoint_identity(version: str) -> Any:
    """What tells one checkpoint from another: for a folder, names, sizes and a hash of both ends of its files.

    Whole files are not hashed, since that takes longer than loading them; a hub id stands for itself.
    """
    folder = Path(version)
    if not folder.is_dir():
        return version
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix != ".md"):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with open(path, "rb") as handle:
            digest.update(handle.read(_SAMPLE))
            handle.seek(max(0, size - _SAMPLE))
            digest.update(handle.read())
    return f"sha256 {digest.hexdigest()}"


def carry_out(items: Sequence[Item], spec: RunSpec, finish: Callable[[Mapping[str, Any]], str]) -> int:
    """Run, and say how it ended; returns the exit status, which is about this host's share alone.

    Args:
        finish: called with the summary; gives a line about the results.
    """
    try:
        summary, errors = run_items(items, spec)
    except WorkerDied as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    lines = [
        f"{summary['items']} items, {summary['frames']} frames complete in {spec.save}",
        finish(summary),
        f"this run: {summary['frames_this_run']} frames in {summary['seconds']:.1f} s, "
        f"{summary['frames_per_second']:.2f} frames/s, {summary['workers']} workers",
    ]
    if spec.host.world > 1:
        lines.append(f"reports of {len(summary['hosts'])} of {spec.host.world} hosts")
    sys.stdout.write("\n".join(lines) + "\n")
    if not errors:
        return 0
    sys.stderr.write(f"error: {len(errors)} items could not be done; the others are complete:\n")
    for key, message in errors.items():
        sys.stderr.write(f"  {key}: {message}\n")
    return 2
