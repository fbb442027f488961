"""Scoring by a key-frame selector: the original's schedule against the engine, same weights, same clip.

Both sides score every frame of one video for E expressions. `reference` is the original's schedule
(`kfs.scoring.reference_clip`): each frame for each expression on its own, its 12 images through CLIP and merging
anew, the whole prompt through the language model. What the original does beside that (its output matrix at every
position, states of all layers kept, a decoding only to learn the size) is not imitated. `engine` is what
`python -m kfs score` runs. Scores must agree and give the same key frames.

The work of both sides is counted and must equal what follows from the lengths of the prompts (reference kfs.md,
section 9). `ratio_of_operations` is what the arithmetic alone allows, counted on 12 frames at most.

Sizes: `tiny` is small but has the original's 256 patches and 112 tokens per image, `7b` has the original's shapes
(needs a GPU). Weights are random. On a CPU seconds are CPU seconds, so that other programs do not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from machine import Clock, peak_mib, reset_peak
from made_up import ROOT, MadeUpClip, made_up_queries, random_weights
from torch.utils.flop_counter import FlopCounterMode

from glus.api import DTYPES
from glus.config import LanguageConfig, VisionConfig
from glus.errors import InputError
from glus.inference.queries import Query
from glus.modeling.work import counted
from glus.text.tokenizer import IMAGE_INDEX, GlusTokenizer
from glus.video import FrameSource
from kfs.frame_scores import best_frame
from kfs.frames import reference_frames, reference_step
from kfs.model import SelectorConfig, SelectorModel
from kfs.prompts import SCORE_TOKEN
from kfs.scoring import Question, reference_clip, score_clip

SIDES = {"reference": reference_clip, "engine": score_clip}
LARGEST_DIFFERENCE = {"fp32": 1e-5, "bf16": 0.1}
"""Of scores, which are of the order of 1."""
WORK = ("clip_frames", "llm_positions")


@dataclasses.dataclass
class Bench:
    """A model, a clip, and what is asked about it."""

    model: SelectorModel
    tokenizer: GlusTokenizer
    clip: FrameSource
    queries: list[Query]

    def run(self, side: str) -> list[list[float]]:
        """Scores by expression and frame."""
        table = [[0.0] * len(self.clip) for _ in self.queries]
        for row, one in SIDES[side](self.model, self.tokenizer, self.clip, self.queries):
            table[row][one.frame] = one.score
        return table


def build(size: str, device: str, precision: str) -> tuple[SelectorModel, GlusTokenizer]:
    """A selector of random weights, made on the device."""
    tokenizer = GlusTokenizer.from_folder(ROOT / "checkpoints" / "glus-tiny").adding(SCORE_TOKEN)
    config = SelectorConfig()
    if size == "tiny":
        language = LanguageConfig(128, 4, 4, 352, vocab_size=len(tokenizer), max_positions=4096, rms_norm_eps=1e-5)
        config = dataclasses.replace(
            config, language=language, vision=VisionConfig(64, 6, 4, 256, pool=1), out_dim=64
        )
    score_id = tokenizer.added_id(SCORE_TOKEN)
    return random_weights(lambda: SelectorModel(config, score_id), device, DTYPES[precision]), tokenizer


def stated_work(bench: Bench) -> dict[str, dict[str, int]]:
    """What both sides have to do, from the lengths of the prompts alone."""
    count, tokens = len(bench.clip), bench.model.config.merging.tokens_per_image
    asked = [Question(bench.model, bench.tokenizer, query.expression, count) for query in bench.queries]
    sizes = [len(reference_frames(count, target)) for target in range(count)]
    whole = [len(q.ids(size)) + (size + 1) * (tokens - 1) for q in asked for size in sizes]
    opening = asked[0].ids(1).index(IMAGE_INDEX)
    prefixes = [
        len(asked[0].parts(size)[0]) + size * (tokens - 1) - opening for size in sizes[: reference_step(count)]
    ]
    tails = [len(q.parts(size)[1]) for q in asked for size in sizes]
    return {
        "reference": {"clip_frames": len(asked) * sum(size + 1 for size in sizes), "llm_positions": sum(whole)},
        "engine": {"clip_frames": count, "llm_positions": opening + sum(prefixes) + count * tokens + sum(tails)},
    }


@dataclasses.dataclass
class Measured:
    """One run of a side."""

    seconds: float
    work: dict[str, int]
    peak: float | None
    scores: list[list[float]]


def measure(bench: Bench, side: str, device: str) -> Measured:
    clock = Clock(device)
    reset_peak(device)
    with counted(bench.model) as work:
        start = clock()
        scores = bench.run(side)
        seconds = clock() - start
    return Measured(seconds, {name: work[name] for name in WORK}, peak_mib(device), scores)


def operations(bench: Bench, side: str) -> int:
    """Floating-point operations of a side: matrix products, convolutions, attention."""
    with FlopCounterMode(display=False) as counter:
        bench.run(side)
    return int(counter.get_total_flops())


def difference(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """The largest of any score."""
    return max(
        abs(a - b) for row, wanted in zip(one, other, strict=True) for a, b in zip(row, wanted, strict=True)
    )


def selector(args: argparse.Namespace) -> dict[str, Any]:
    """Run both sides; prints a table, returns the figures of the last line."""
    model, tokenizer = build(args.size, args.device, args.precision)
    bench = Bench(
        model, tokenizer, MadeUpClip(args.frames, args.height, args.width), made_up_queries(args.expressions)
    )
    warm = dataclasses.replace(bench, clip=MadeUpClip(2, args.height, args.width), queries=bench.queries[:1])
    for side in SIDES:
        warm.run(side)
    done = {side: measure(bench, side, args.device) for side in SIDES}
    short = dataclasses.replace(bench, clip=MadeUpClip(min(args.frames, 12), args.height, args.width))
    flops = {side: operations(short, side) for side in SIDES}
    stated = stated_work(bench)
    work = {side: one.work for side, one in done.items()}
    apart = difference(done["engine"].scores, done["reference"].scores)
    keys = {side: [best_frame(scores) for scores in one.scores] for side, one in done.items()}
    agree = apart <= LARGEST_DIFFERENCE[args.precision]
    if args.precision == "fp32":
        agree = agree and keys["engine"] == keys["reference"]
    print(f"{'':20}{'reference':>14}{'engine':>14}{'ratio':>8}")
    rows = [(name, *(work[side][name] for side in SIDES)) for name in WORK]
    for name, original, ours in [*rows, ("seconds", *(round(done[side].seconds, 2) for side in SIDES))]:
        print(f"{name:20}{original:14,}{ours:14,}{original / max(ours, 1e-9):8.2f}")
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {
        "benchmark": "selector",
        "size": args.size,
        "frames": args.frames,
        "expressions": args.expressions,
        "ratio": round(done["reference"].seconds / max(done["engine"].seconds, 1e-9), 2),
        "ratio_of_operations": round(flops["reference"] / flops["engine"], 2),
        "ratio_of_positions": round(work["reference"]["llm_positions"] / work["engine"]["llm_positions"], 2),
        "equal": agree and work == stated,
        "largest_difference": apart,
        "least_spread": min(max(scores) - min(scores) for scores in done["reference"].scores),
        "same_key_frames": keys["engine"] == keys["reference"],
        "counts": work,
        "counts_as_stated": work == stated,
        "seconds": {side: round(one.seconds, 2) for side, one in done.items()},
        "peak_mib": {side: one.peak and round(one.peak) for side, one in done.items()},
        "precision": args.precision,
        "device": name,
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="13 frames, 2 expressions")
    parser.add_argument("--size", choices=["tiny", "7b"], default="tiny", help="of the model (default: tiny)")
    parser.add_argument("--frames", type=int, default=40, help="(default: 40)")
    parser.add_argument("--expressions", type=int, default=3, help="(default: 3)")
    parser.add_argument("--height", type=int, default=240, help="of the video (default: 240)")
    parser.add_argument("--width", type=int, default=320, help="of the video (default: 320)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="(default: bf16 on a GPU, else fp32)")
    args = parser.parse_args(argv)
    args.precision = args.precision or ("bf16" if args.device == "cuda" else "fp32")
    if args.quick:
        args.frames, args.expressions = 13, 2
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but no GPU is visible")
    if args.size == "7b" and args.device != "cuda":
        raise InputError("--size 7b needs a GPU with 24 GiB of memory or more; none is visible")
    figures = selector(args)
    print(json.dumps(figures))
    return 0 if figures["equal"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"error: {error}")
