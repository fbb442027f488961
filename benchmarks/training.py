"""A training step: repeated for every expression of a sample, against ours, which shares frames between them.

Both sides load the same samples from disk (a made-up MeViS set), decode and transform their frames, run forward
and backward of the same model with the released trainable set (LoRA included), and must end in the same losses and
gradients. Every step is loaded anew. Sides take turns; a side's time is its best step's.

`ratio` is the schedule "repeat per expression" over ours: each expression has its own CLIP forward of all frames,
language-model call, SAM-2 features, memories and masks; context frames are made at SAM-2's size, too; logits and
[SEG] head are computed at every position; the last frame is encoded into the memory.

The code released with the paper does not repeat all of that in training (reference glus.md 10): SAM-2's features
are computed once per query frame and its language model takes the expressions as one batch. `ratio_released` is
that schedule over ours: CLIP once per expression (D29), context frames at SAM-2's size (D28), logits and head at
every position, a useless last memory. Its waiting for the device once per token (D23) and its eager attention are
not imitated, nor is gradient checkpointing used on any side.

Ours also reads what the expressions of a sample begin with alike, context frames and first query frame, once per
sample; not so with gradient checkpointing (the 7B recipes have it on), which keeps no keys and values to share.

How much sharing gains depends on where a model's work lies. In the benchmark's model (random weights; sizes
below) images cost more than words. In the released 7B model the language model is about nine tenths of the
arithmetic; sharing images gains some percent there, not a factor.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from davis import peak_mib
from torch import nn

from glus.api import DTYPES, GLUS
from glus.config import LanguageConfig, ModelConfig, Sam2Config, VisionConfig
from glus.data.command import main as data_command
from glus.data.sampling import ClipSample, SamplingRules, open_records
from glus.modeling.glus import GLUSModel
from glus.modeling.mask_decoder import upsample_logits
from glus.modeling.pretrained import fresh_model
from glus.modeling.work import Waits, counted
from glus.text.tokenizer import GlusTokenizer
from glus.training import batches
from glus.training.batches import TrainingSet
from glus.training.forward import TRAINING_STRIDE, TrainingForward, TrainingSample
from glus.training.losses import StepLosses, mask_bce, mask_dice, mean_of_pairs, seg_cross_entropy, total_loss
from glus.training.objective import Objective
from glus.training.parameters import LoraSettings, add_lora, select_trainable

ROOT = Path(__file__).resolve().parents[1]
SIZES = ModelConfig(
    LanguageConfig(hidden_size=128, num_layers=4, num_heads=4, intermediate_size=344),
    VisionConfig(hidden_size=192, num_layers=6, num_heads=6, intermediate_size=768),
    Sam2Config(
        image_size=512,
        trunk_dim=48,
        trunk_heads=1,
        stages=(1, 2, 7, 2),
        windows=(8, 4, 8, 4),
        global_blocks=(5, 7, 9),
        hidden_size=64,
        memory_dim=16,
        memory_layers=1,
        memory_ffn=256,
        decoder_heads=4,
        decoder_ffn=256,
        iou_hidden=64,
    ),
)
SIDES = ("ours", "released", "repeat")
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Of losses and of the gradients' norm, relative: the order of sums differs between the sides."""


# --- the original's schedules ---------------------------------------------------------------------------------


class OriginalSet(TrainingSet):
    """Context frames are made at SAM-2's size, too (D28); they travel along and nobody looks at them."""

    def sample(self, clip: ClipSample, rng: Any) -> TrainingSample:
        sample = super().sample(clip, rng)
        size = self.config.sam2.image_size
        context = torch.stack([batches.sam_image(frame, size) for frame in clip.context])
        return dataclasses.replace(sample, sam_pixels=torch.cat([context, sample.sam_pixels])[len(context) :])


class OriginalForward(nn.Module):
    """The forward of one sample as released: see the module's text."""

    def __init__(self, model: GLUSModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: TrainingSample) -> StepLosses:
        model, weights = self.model, Objective().weights
        copies = sample.clip_pixels.repeat(len(sample.rows), 1, 1, 1)
        batch = model.assemble(sample.rows, model.encode_clip(copies))
        states = model.states(batch)
        logits, embeddings = model.language.lm_head(states), model.seg_head(states)
        at = (torch.tensor(batch.layout.seg_rows), torch.tensor(batch.layout.seg_columns))
        prompts = embeddings[at].unflatten(0, (len(sample.rows), len(sample.frames)))
        height, width = sample.targets.shape[-2:]
        bank = model.new_bank(TRAINING_STRIDE)
        bce, dice = [], []
        for position in range(len(sample.frames)):
            features = model.encode_frame(sample.sam_pixels[position : position + 1])
            output = model.segment_frame(features, prompts[:, position], bank, position)
            model.remember(features, output, bank, position)
            masks = upsample_logits(output.low_res, height, width)
            bce.append(mask_bce(masks, sample.targets[:, position]))
            dice.append(mask_dice(masks, sample.targets[:, position]))
        ce = seg_cross_entropy(logits[at], model.seg_id)
        return total_loss(ce, mean_of_pairs(bce), mean_of_pairs(dice), None, weights)


# --- one step of each side ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Bench:
    """The model and its samples.

    Attributes:
        steps: side -> a step on sample `number`: load, forward, backward. Returns the losses.
    """

    model: GLUSModel
    steps: dict[str, Callable[[int], dict[str, torch.Tensor]]]


def build(version: str | None, device: str, precision: str) -> GLUS:
    """A checkpoint, or the benchmark's own model with glus-tiny's tokenizer."""
    if version is not None:
        return GLUS.from_pretrained(version, dtype=DTYPES[precision], device=device)
    tokenizer = GlusTokenizer.from_folder(ROOT / "checkpoints" / "glus-tiny")
    language = dataclasses.replace(SIZES.language, vocab_size=len(tokenizer))
    model = fresh_model(dataclasses.replace(SIZES, language=language), tokenizer).to(device, DTYPES[precision])
    model.finish_loading()
    return GLUS(model, tokenizer)


def prepare(data: Path, version: str | None, device: str, precision: str) -> Bench:
    glus = build(version, device, precision)
    model = glus.model
    add_lora(model, LoraSettings(dropout=0.0))
    select_trainable(model, "released")
    model.train()
    model.sam.memory_attention.eval()  # dropout would make the sides differ
    source = open_records([("mevis", 1.0)], data, SamplingRules())
    samples = {kind: kind(source, glus.tokenizer, model.config, seed=0) for kind in (TrainingSet, OriginalSet)}
    ours, original = TrainingForward(model), OriginalForward(model)

    def step(losses: Callable[[TrainingSample], list[StepLosses]], kind: type[TrainingSet]) -> Any:
        def run(number: int) -> dict[str, torch.Tensor]:
            sample = samples[kind][number].to(device)
            parts = losses(sample)
            torch.stack([part.total for part in parts]).mean().backward()
            return {k: torch.stack([p.detached()[k] for p in parts]).mean() for k in parts[0].detached()}

        return run

    return Bench(
        model,
        {
            "ours": step(lambda sample: [ours([sample]).losses], TrainingSet),
            "released": step(lambda sample: [original(sample)], OriginalSet),
            "repeat": step(lambda sample: [original(one) for one in sample.per_expression()], OriginalSet),
        },
    )


def gradient_norm(model: GLUSModel) -> float:
    return float(torch.stack([p.grad.float().norm() for p in model.parameters() if p.grad is not None]).norm())


def timed(step: Callable[[int], Any], number: int, device: str) -> float:
    """Seconds of a step: CPU time on the CPU, where other programs must not count, else time."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    step(number)
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


# --- what is counted ------------------------------------------------------------------------------------------


@contextmanager
def counted_frames() -> Iterator[dict[str, int]]:
    """Frames made at SAM-2's size within the block."""
    seen, real = {"frames_at_sam2_size": 0}, batches.sam_image

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen["frames_at_sam2_size"] += 1
        return real(*args, **kwargs)

    vars(batches)["sam_image"] = counting
    try:
        yield seen
    finally:
        vars(batches)["sam_image"] = real


@dataclasses.dataclass
class Outcome:
    """What a step on one sample gave: losses and gradient norm, and the work it took."""

    values: dict[str, float]
    work: dict[str, int]


def outcome(bench: Bench, side: str, number: int) -> Outcome:
    bench.model.zero_grad()
    with counted(bench.model) as parts, counted_frames() as frames, Waits() as waits:
        losses = bench.steps[side](number)
    values = {name: float(value) for name, value in losses.items()}
    values["gradient_norm"] = gradient_norm(bench.model)
    return Outcome(values, {**parts, **frames, "host_waits": waits.count})


def agree(found: dict[str, Outcome], tolerance: float) -> bool:
    return all(
        abs(one.values[name] - wanted) <= tolerance * abs(wanted)
        for one in found.values()
        for name, wanted in found["ours"].values.items()
    )


# --- the benchmark --------------------------------------------------------------------------------------------


def peak(data: Path, version: str | None, device: str, precision: str, side: str, pipe: Any) -> None:
    """In a process of its own: peak memory, in MiB, of a step above that of the loaded model."""
    bench = prepare(data, version, device, precision)
    before = peak_mib() if device == "cpu" else torch.cuda.memory_allocated() / 2**20
    bench.steps[side](0)
    after = peak_mib() if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    pipe.send(round(after - before))


def peaks(*arguments: Any) -> dict[str, int]:
    context = multiprocessing.get_context("spawn")
    started = []
    for side in SIDES:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=peak, args=(*arguments, side, sender))
        process.start()
        sender.close()
        started.append((side, receiver, process))
    found = {}
    for side, receiver, process in started:
        try:
            found[side] = receiver.recv()
        except EOFError:
            raise RuntimeError(f"the process of {side} died") from None
        process.join()
    return found


def training_step(
    version: str, device: str, precision: str, steps: int, width: int, height: int
) -> dict[str, Any]:
    """Run all sides on the same samples; the figures of the benchmark's last line."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        made = ["--set_name", "train", "--videos", "2", "--seed", "1", "--workers", "1"]
        data_command(["synthetic", "--out", folder, *made, "--width", str(width), "--height", str(height)])
        bench = prepare(data, version, device, precision)
        found = {side: outcome(bench, side, 0) for side in SIDES}  # also warms up
        best = dict.fromkeys(SIDES, float("inf"))
        for number in range(steps):
            for side in SIDES:
                bench.model.zero_grad()
                best[side] = min(best[side], timed(bench.steps[side], number, device))
        memory = peaks(data, version, device, precision)
    size = sum(parameter.numel() for parameter in bench.model.parameters())
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {
        "benchmark": "training_step",
        "ratio": round(best["repeat"] / best["ours"], 2),
        "ratio_released": round(best["released"] / best["ours"], 2),
        "equal": agree(found, TOLERANCE[precision]),
        "values": {side: one.values for side, one in found.items()},
        "expressions": 3,
        "samples_per_second": {side: round(1 / seconds, 3) for side, seconds in best.items()},
        "counts": {side: one.work for side, one in found.items()},
        "peak_mib_above_model": memory,
        "model": f"{Path(version).name if version else 'random weights'}, {size:,} parameters",
        "precision": precision,
        "device": name,
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 timed steps of each side (default: 8)")
    parser.add_argument("--version", help="checkpoint folder (default: the benchmark's own model)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--precision", choices=list(TOLERANCE), default="fp32", help="(default: fp32)")
    parser.add_argument("--width", type=int, default=640, help="of the videos (default: 640)")
    parser.add_argument("--height", type=int, default=480, help="of the videos (default: 480)")
    args = parser.parse_args(argv)
    figures = training_step(
        args.version, args.device, args.precision, 2 if args.quick else 8, args.width, args.height
    )
    print(json.dumps(figures))
    return 0 if figures["equal"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
