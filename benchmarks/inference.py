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
timed (of the original's, for one expression: the others cost the same up to the length of their text).

Sizes: `tiny` has the shapes of configs/glus_tiny.yaml, `7b` those of LLaMA-7B and SAM-2 hiera-L (needs a GPU). The
weights are random, made on the device, and every window counts as answered. On a CPU seconds are CPU seconds, so
that other programs do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from glus.api import DTYPES
from glus.config import Behaviour, InferenceConfig, ModelConfig, load_yaml
from glus.errors import InputError
from glus.inference import engine, reference
from glus.inference.queries import Dialog, Query
from glus.modeling.glus import GLUSModel
from glus.modeling.work import counted
from glus.text.tokenizer import GlusTokenizer
from glus.video import open_frames

ROOT = Path(__file__).resolve().parents[1]
SIDES: dict[str, Callable[..., Iterator[Any]]] = {
    "reference": reference.segment_clip,
    "engine": engine.segment_clip,
}
WORDS = [
    "the",
    "a",
    "red",
    "grey",
    "small",
    "dog",
    "car",
    "left",
    "that",
    "which",
    "moves",
    "turns",
    "stays",
    "behind",
]
LEAST_IOU = {"fp32": 0.999, "bf16": 0.95}
"""Of each expression's masks, whose borders are many with random weights; their mean must reach 0.99."""


@dataclasses.dataclass
class Bench:
    """A model, a clip, and what is asked about it."""

    model: GLUSModel
    tokenizer: GlusTokenizer
    clip: np.ndarray
    queries: list[Query]
    config: InferenceConfig

    def run(self, side: str, expressions: int | None = None) -> dict[tuple[int, int], np.ndarray]:
        """Masks by (expression, frame)."""
        asked = self.queries[:expressions]
        found = SIDES[side](self.model, self.tokenizer, open_frames(self.clip), asked, self.config)
        return {(row, result.frame): result.mask for row, result in found}


def build(size: str, device: str, precision: str) -> tuple[GLUSModel, GlusTokenizer]:
    """A model of random weights, made on the device."""
    tokenizer = GlusTokenizer.from_folder(ROOT / "checkpoints" / "glus-tiny")
    if size == "7b":
        config = ModelConfig(behaviour=Behaviour(seg_decision="always"))
    else:
        config = load_yaml(ModelConfig, ROOT / "configs" / "glus_tiny.yaml")
        language = dataclasses.replace(config.language, vocab_size=len(tokenizer))
        behaviour = dataclasses.replace(config.behaviour, seg_decision="always")
        config = dataclasses.replace(config, language=language, behaviour=behaviour)
    return random_model(config, tokenizer, device, DTYPES[precision]), tokenizer


def random_model(config: ModelConfig, tokenizer: GlusTokenizer, device: str, dtype: torch.dtype) -> GLUSModel:
    """Weights large enough that every part shows in the masks; nothing of the model lies on another device."""
    with torch.device("meta"):
        model = GLUSModel(config, tokenizer.seg_id)
    model = model.to(dtype).to_empty(device=device).eval()
    dice = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if tensor.dim() < 2:
                tensor.fill_(_constant(name))
            else:
                tensor.normal_(generator=dice).mul_(_scale(name, tensor))
    model.finish_loading()
    return model


def _constant(name: str) -> float:
    if name.endswith("bias"):
        return 0.0
    return 0.1 if name.endswith("gamma") else 1.0


def _scale(name: str, tensor: torch.Tensor) -> float:
    """Larger in SAM-2's part, and rounding would grow from memory to memory until the sides differ."""
    calm = name.startswith("sam.") and "sam_mask_decoder" not in name
    if "embed" in name or "token" in name or "gaussian" in name:
        return 0.3 if calm else 0.5
    fan_in = tensor.shape[0] if "output_upscaling" in name else tensor[0].numel()
    return float((0.7 if calm else 2.0 if "seg_head" in name else 1.2) / fan_in**0.5)


def made_up_clip(frames: int, height: int, width: int) -> np.ndarray:
    """uint8 (frames, height, width, 3): a few coloured boxes that cross a textured background."""
    dice = np.random.default_rng(0)
    coarse = dice.integers(0, 160, (height // 20 + 1, width // 20 + 1, 3))
    background = np.kron(coarse, np.ones((20, 20, 1)))[:height, :width]
    clip = np.repeat(background[None], frames, axis=0).astype(np.uint8)
    for number in range(4):
        colour, top = dice.integers(80, 256, 3), int(dice.integers(0, height * 2 // 3))
        for index in range(frames):
            left = (number * width // 5 + 7 * index * (1 + number % 2)) % (width * 3 // 4)
            clip[index, top : top + height // 4, left : left + width // 5] = colour
    return clip


def made_up_queries(expressions: int) -> list[Query]:
    """As long as the sentences of MeViS: 4 to 14 words."""
    dice = np.random.default_rng(1)
    return [Query(" ".join(dice.choice(WORDS, dice.integers(4, 15)))) for _ in range(expressions)]


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


def operations(bench: Bench) -> dict[str, int]:
    """Floating-point operations of each side."""
    found = {}
    for side, expressions in (("reference", 1), ("engine", len(bench.queries))):
        with FlopCounterMode(display=False) as counter:
            bench.run(side, expressions)
        found[side] = counter.get_total_flops() * (len(bench.queries) // expressions)
    return found


# --- time and memory ------------------------------------------------------------------------------------------


class Clock:
    """Seconds: CPU seconds of this process on a CPU; on a GPU, after all that was asked of it is done."""

    def __init__(self, device: str) -> None:
        self._gpu = device == "cuda"

    def __call__(self) -> float:
        if not self._gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


@contextlib.contextmanager
def stages(model: GLUSModel, clock: Clock) -> Iterator[dict[str, float]]:
    """Seconds of each part within the block."""
    parts = {
        "clip": [(model, "encode_clip")],
        "language model": [(model, "states"), (model.language, "begin"), (model.language, "read")],
        "heads": [(model.language, "logits"), (model.seg_head, "forward")],
        "sam-2 image encoder": [(model, "encode_frame")],
        "memory attention": [(model.sam, "condition")],
        "mask decoder": [(model.sam, "decode")],
        "memory encoder": [(model.sam, "encode_memory")],
    }
    seen = dict.fromkeys(parts, 0.0)

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return work(*args, **kwargs)
            finally:
                seen[name] += clock() - start

        return run

    places = [(name, owner, method) for name, methods in parts.items() for owner, method in methods]
    for name, owner, method in places:
        owner.__dict__[method] = timed(name, getattr(owner, method))
    try:
        yield seen
    finally:
        for _, owner, method in places:
            del owner.__dict__[method]


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: str) -> int | None:
    """Peak memory since `reset_peak`, the model included; None where the system does not tell."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated() / 2**20)
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) // 1024


@dataclasses.dataclass
class Measured:
    """One run of a side."""

    seconds: float
    parts: dict[str, float]
    work: dict[str, int]
    peak: int | None
    masks: dict[tuple[int, int], np.ndarray]


def measure(bench: Bench, side: str, device: str) -> Measured:
    clock = Clock(device)
    reset_peak(device)
    with counted(bench.model) as work:
        start = clock()
        if (
            device == "cuda"
        ):  # waiting for each part would slow the whole down: parts are timed in a run of their own
            masks = bench.run(side)
            seconds = clock() - start
            counts = dict(work)
            with stages(bench.model, clock) as parts:
                bench.run(side)
        else:
            with stages(bench.model, clock) as parts:
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
    clip = made_up_clip(args.frames, args.height, args.width)
    bench = Bench(model, tokenizer, clip, made_up_queries(args.expressions), InferenceConfig())
    warm = dataclasses.replace(bench, clip=clip[:2], queries=bench.queries[:2])
    for side in SIDES:
        warm.run(side)
    done = {side: measure(bench, side, args.device) for side in SIDES}
    flops, stated = operations(bench), stated_work(bench)
    work = {side: {k: v for k, v in one.work.items() if k in stated[side]} for side, one in done.items()}
    scores = overlaps(done["engine"], done["reference"])
    agree = min(scores) >= LEAST_IOU[args.precision] and float(np.mean(scores)) >= 0.99
    rate = {side: args.frames * args.expressions / one.seconds for side, one in done.items()}
    print_table(done, rate, work, stated)
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {
        "benchmark": "inference",
        "size": args.size,
        "frames": args.frames,
        "expressions": args.expressions,
        "ratio": round(rate["engine"] / rate["reference"], 2),
        "ratio_of_operations": round(flops["reference"] / flops["engine"], 2),
        "equal": agree and as_stated(work, stated),
        "masks": {"mean_iou": round(float(np.mean(scores)), 5), "least_iou": round(min(scores), 5)},
        "counts": work,
        "counts_as_stated": as_stated(work, stated),
        "gflop": {side: round(value / 1e9, 1) for side, value in flops.items()},
        "frames_x_expressions_per_second": {side: round(value, 3) for side, value in rate.items()},
        "seconds": {side: round(one.seconds, 2) for side, one in done.items()},
        "peak_mib": {side: one.peak for side, one in done.items()},
        "precision": args.precision,
        "device": name,
    }


def print_table(
    done: dict[str, Measured], rate: dict[str, float], work: dict[str, dict[str, int]], stated: dict[str, Any]
) -> None:
    print(f"{'seconds':24}{'reference':>12}{'engine':>12}{'ratio':>8}")
    both = [done[side] for side in SIDES]
    rows = [(part, *(one.parts[part] for one in both)) for part in both[0].parts]
    rows += [("everything", *(one.seconds for one in both))]
    for part, original, ours in rows:
        print(f"{part:24}{original:12.2f}{ours:12.2f}{original / max(ours, 1e-9):8.2f}")
    print(f"{'frames x expressions/s':24}{rate['reference']:12.2f}{rate['engine']:12.2f}")
    print(f"\n{'work':24}{'reference':>12}{'stated':>12}{'engine':>12}{'least':>12}")
    for name in stated["engine"]:
        values = [work["reference"][name], stated["reference"][name], work["engine"][name], stated["engine"][name]]
        print(f"{name:24}" + "".join(f"{value:12,}" for value in values))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 frames, 3 expressions")
    parser.add_argument("--size", choices=["tiny", "7b"], default="tiny", help="of the model (default: tiny)")
    parser.add_argument("--frames", type=int, default=60, help="(default: 60)")
    parser.add_argument("--expressions", type=int, default=16, help="(default: 16)")
    parser.add_argument("--height", type=int, default=240, help="of the video (default: 240)")
    parser.add_argument("--width", type=int, default=320, help="of the video (default: 320)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--precision", choices=list(LEAST_IOU), help="(default: bf16 on a GPU, else fp32)")
    args = parser.parse_args(argv)
    args.precision = args.precision or ("bf16" if args.device == "cuda" else "fp32")
    if args.quick:
        args.frames, args.expressions = 8, 3
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but no GPU is visible")
    if args.size == "7b" and args.device != "cuda":
        raise InputError("--size 7b needs a GPU with 24 GiB of memory or more; none is visible")
    figures = inference(args)
    print(json.dumps(figures))
    return 0 if figures["equal"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"error: {error}")
