"""Inference: the original's schedule against the engine, on the same weights and the same clip.

Both sides get one video and E expressions. `reference` is the original's schedule (`glus.inference.reference`; its
work is that of reference glus.md 10): each expression on its own, each window's images through CLIP anew, every
position of it through the language model and both heads, SAM-2's image encoder for every expression. Its waiting
for the device once per token (D23) is not imitated. `engine` is what `python -m glus infer` runs. Masks must
agree.

The work of both sides is counted and must equal the formulas of the reference document; the engine's language
model may stay below, since it also shares the first query frame of a window between expressions. Then come seconds
by part and frames x expressions per second. `ratio_of_operations` is what the arithmetic alone allows: the
floating-point operations of matrix products, convolutions and attention, counted in a run of each side that is not
timed (of the original's, for one expression: the others cost the same up to the length of their text). `floor` is
what a part of the engine must take at least on this machine: its operations at the rate of a large matrix product,
or its bytes (weights once per call, arguments, results) at that of a large copy, both measured here.

`--memory` measures memory instead: see `inference_memory.py`.

Sizes: `tiny` has the shapes of configs/glus_tiny.yaml, `7b` those of LLaMA-7B and SAM-2 hiera-L (needs a GPU). The
weights are random, made on the device, and every window counts as answered. On a CPU seconds are CPU seconds, so
that other programs do not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from inference_memory import memory
from machine import Clock, Rates, measured_rates, peak_mib, reset_peak
from made_up import MadeUpClip, build, made_up_queries
from stages import Need, needs, timed

from glus.config import InferenceConfig
from glus.errors import InputError
from glus.inference import engine, reference
from glus.inference.queries import Dialog, Query
from glus.modeling.glus import GLUSModel
from glus.modeling.speed import ATTENTION, check_attention, compile_parts
from glus.modeling.work import counted
from glus.text.tokenizer import GlusTokenizer

SIDES: dict[str, Callable[..., Iterator[Any]]] = {
    "reference": reference.segment_clip,
    "engine": engine.segment_clip,
}
LEAST_IOU = {"fp32": 0.999, "bf16": 0.95}
"""Of each expression's masks, whose borders are many with random weights; their mean must reach 0.99."""


@dataclasses.dataclass
class Bench:
    """A model, a clip, and what is asked about it."""

    model: GLUSModel
    tokenizer: GlusTokenizer
    clip: MadeUpClip
    queries: list[Query]
    config: InferenceConfig

    def run(self, side: str, expressions: int | None = None) -> dict[tuple[int, int], np.ndarray]:
        """Masks by (expression, frame)."""
        asked = self.queries[:expressions]
        found = SIDES[side](self.model, self.tokenizer, self.clip, asked, self.config)
        return {(row, result.frame): result.mask for row, result in found}


# --- work -----------------------------------------------------------------------------------------------------


def stated_work(bench: Bench) -> dict[str, dict[str, int]]:
    """The formulas of reference glus.md 10, with the lengths of this tokenizer, image size and expressions."""
    config, frames, count = bench.config, len(bench.clip), len(bench.queries)
    more = bench.model.config.vision.tokens_per_image - 1
    rounds = [min(i + 1, config.query_frames) for i in range(frames)]
    dialogs = [Dialog(bench.model.config, bench.tokenizer, q.expression, config) for q in bench.queries]
    positions = sum(len(d.ids(k)) + (config.context_frames + k) * more for d in dialogs for k in rounds)
    images = [i for i, token in enumerate(dialogs[0].ids(1)) if token < 0]
    # All before the mark that opens the first query image.
    shared = images[config.context_frames] - 1 + config.context_frames * more
    original = {
        "clip_frames": count * sum(config.context_frames + k for k in rounds),
        "sam2_image_encodings": count * frames,
        "llm_positions": positions,
        "seg_head_positions": positions,
        "memory_attention_calls": count * (frames - 1),
        "mask_decoder_calls": count * frames,
        "memory_encoder_calls": count * frames,
    }
    least = {
        "clip_frames": frames,
        "sam2_image_encodings": frames,
        "llm_positions": shared + positions - count * frames * shared,
        "seg_head_positions": count * frames,
        "memory_attention_calls": frames - 1,
        "mask_decoder_calls": frames,
        "memory_encoder_calls": frames - 1,
    }
    return {"reference": original, "engine": least}


def as_stated(found: dict[str, dict[str, int]], stated: dict[str, dict[str, int]]) -> bool:
    """The original's work exactly; the engine's too, but for language-model positions, which may be fewer."""
    positions = "llm_positions"
    rest = {name: value for name, value in stated["engine"].items() if name != positions}
    return (
        all(found["reference"][name] == value for name, value in stated["reference"].items())
        and all(found["engine"][name] == value for name, value in rest.items())
        and found["engine"][positions] <= stated["engine"][positions]
    )


def needed(bench: Bench) -> dict[str, dict[str, Need]]:
    """What each part of each side needs; of the original's, for one expression, times their number."""
    count = len(bench.queries)
    one = needs(bench.model, lambda: bench.run("reference", 1))
    return {
        "reference": {part: need * count for part, need in one.items()},
        "engine": needs(bench.model, lambda: bench.run("engine")),
    }


# --- time and memory ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Measured:
    """One run of a side."""

    seconds: float
    parts: dict[str, float]
    work: dict[str, int]
    peak: float | None
    masks: dict[tuple[int, int], np.ndarray]


def measure(bench: Bench, side: str, device: str) -> Measured:
    clock = Clock(device)
    reset_peak(device)
    with counted(bench.model) as work:
        start = clock()
        if device == "cuda":  # waiting for each part slows the whole down: parts are timed in a run of their own
            masks = bench.run(side)
            seconds = clock() - start
            counts = dict(work)
            with timed(bench.model, clock) as parts:
                bench.run(side)
        else:
            with timed(bench.model, clock) as parts:
                masks = bench.run(side)
            seconds, counts = clock() - start, dict(work)
    return Measured(seconds, parts, counts, peak_mib(device), masks)


def overlaps(one: Measured, other: Measured) -> list[float]:
    """IoU of each expression's masks."""
    found = []
    for row in sorted({row for row, _ in one.masks}):
        frames = [key for key in one.masks if key[0] == row]
        a, b = (np.stack([side.masks[key] for key in frames]) for side in (one, other))
        union = int((a | b).sum())
        found.append(float((a & b).sum() / union) if union else 1.0)
    return found


def inference(args: argparse.Namespace) -> dict[str, Any]:
    """Run both sides; prints a table, returns the figures of the last line."""
    model, tokenizer = build(args.size, args.device, args.precision)
    check_attention(args.attention, model.device, model.dtype)
    model.language.attention = args.attention
    if args.compile:
        compile_parts(model)
    clip = MadeUpClip(args.frames, args.height, args.width)
    bench = Bench(model, tokenizer, clip, made_up_queries(args.expressions), InferenceConfig())
    short = MadeUpClip(2, args.height, args.width)
    warm = dataclasses.replace(bench, clip=short, queries=bench.queries[:2])
    for side in SIDES:
        warm.run(side)
    done = {side: measure(bench, side, args.device) for side in SIDES}
    need, stated = needed(bench), stated_work(bench)
    rates = measured_rates(args.device, model.dtype)
    work = {side: {k: v for k, v in one.work.items() if k in stated[side]} for side, one in done.items()}
    scores = overlaps(done["engine"], done["reference"])
    agree = min(scores) >= LEAST_IOU[args.precision] and float(np.mean(scores)) >= 0.99
    rate = {side: args.frames * args.expressions / one.seconds for side, one in done.items()}
    print_seconds(done, rate, need, rates)
    print_work(work, stated)
    operations = {side: parts["everything"].operations for side, parts in need.items()}
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {
        "benchmark": "inference",
        "size": args.size,
        "frames": args.frames,
        "expressions": args.expressions,
        "ratio": round(rate["engine"] / rate["reference"], 2),
        "ratio_of_operations": round(operations["reference"] / operations["engine"], 2),
        "equal": agree and as_stated(work, stated),
        "masks": {"mean_iou": round(float(np.mean(scores)), 5), "least_iou": round(min(scores), 5)},
        "counts": work,
        "counts_as_stated": as_stated(work, stated),
        "gflop": {side: round(value / 1e9, 1) for side, value in operations.items()},
        "stages": stage_figures(done, need, rates),
        "measured_gflop_per_second": round(rates.operations / 1e9, 1),
        "measured_gb_per_second": round(rates.bytes / 1e9, 1),
        "frames_x_expressions_per_second": {side: round(value, 3) for side, value in rate.items()},
        "seconds": {side: round(one.seconds, 2) for side, one in done.items()},
        "peak_mib": {side: one.peak and round(one.peak) for side, one in done.items()},
        "precision": args.precision,
        "attention": args.attention,
        "compiled": args.compile,
        "device": name,
    }


def stage_figures(
    done: dict[str, Measured], need: dict[str, dict[str, Need]], rates: Rates
) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of each part of each side, beside their floor on this machine."""
    return {
        side: {
            part: {
                "seconds": round(seconds, 4),
                "floor": round(rates.floor(need[side][part].operations, need[side][part].bytes), 4),
            }
            for part, seconds in {**one.parts, "everything": one.seconds}.items()
        }
        for side, one in done.items()
    }


def print_seconds(
    done: dict[str, Measured], rate: dict[str, float], need: dict[str, dict[str, Need]], rates: Rates
) -> None:
    print(f"{'seconds':24}{'reference':>12}{'engine':>12}{'ratio':>8}{'floor':>12}{'GFLOP':>12}{'GB':>10}")
    figures = stage_figures(done, need, rates)
    for part, ours in figures["engine"].items():
        original, least = figures["reference"][part]["seconds"], need["engine"][part]
        columns = f"{original:12.2f}{ours['seconds']:12.2f}{original / max(ours['seconds'], 1e-9):8.2f}"
        work = f"{least.operations / 1e9:12.1f}{least.bytes / 1e9:10.2f}"
        print(f"{part:24}{columns}{ours['floor']:12.3f}{work}")
    print(f"{'frames x expressions/s':24}{rate['reference']:12.2f}{rate['engine']:12.2f}")
    print("\nfloor of the engine: the larger of operations at the rate of a large matrix product, and bytes at")
    print("that of a large copy, which a CPU's caches may beat; both measured:")
    print(f"{rates.operations / 1e9:.1f} GFLOP/s, {rates.bytes / 1e9:.1f} GB/s")


def print_work(work: dict[str, dict[str, int]], stated: dict[str, dict[str, int]]) -> None:
    print(f"\n{'work':24}{'reference':>12}{'stated':>12}{'engine':>12}{'least':>12}")
    for name in stated["engine"]:
        values = [work["reference"][name], stated["reference"][name], work["engine"][name], stated["engine"][name]]
        print(f"{name:24}" + "".join(f"{value:12,}" for value in values))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 frames, 3 expressions")
    parser.add_argument(
        "--memory", action="store_true", help="peak memory of clips of 60 and 600 frames and a stream of 5,000"
    )
    parser.add_argument("--memory_budget", type=float, default=0.25, help="GiB, with --memory (default: 0.25)")
    parser.add_argument("--size", choices=["tiny", "7b"], default="tiny", help="of the model (default: tiny)")
    parser.add_argument("--frames", type=int, default=60, help="(default: 60)")
    parser.add_argument("--expressions", type=int, help="(default: 16, with --memory 1)")
    parser.add_argument("--height", type=int, default=240, help="of the video (default: 240)")
    parser.add_argument("--width", type=int, default=320, help="of the video (default: 320)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--attention", choices=ATTENTION, default="sdpa", help="of the language model")
    parser.add_argument("--compile", action="store_true", help="torch.compile of what is run most, on both sides")
    parser.add_argument("--precision", choices=list(LEAST_IOU), help="(default: bf16 on a GPU, else fp32)")
    args = parser.parse_args(argv)
    args.precision = args.precision or ("bf16" if args.device == "cuda" else "fp32")
    args.expressions = args.expressions or (3 if args.quick else 1 if args.memory else 16)
    if args.quick:
        args.frames = 8
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but no GPU is visible")
    if args.size == "7b" and args.device != "cuda":
        raise InputError("--size 7b needs a GPU with 24 GiB of memory or more; none is visible")
    if args.memory and peak_mib(args.device) is None:
        raise InputError("this system does not tell the memory of a process; --memory needs Linux or a GPU")
    if args.memory:
        lengths, stream = ([12, 24], 36) if args.quick else ([60, 600], 5000)
        kind = args.size, args.device, args.precision, (args.height, args.width)
        figures = memory(*kind, args.expressions, args.memory_budget, lengths, stream)
    else:
        figures = inference(args)
    print(json.dumps(figures))
    return 0 if figures["equal"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"error: {error}")
