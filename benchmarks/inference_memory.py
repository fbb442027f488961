"""Peak memory of the engine on long videos; `benchmarks/inference.py --memory` runs it.

Each run has a process of its own and the same memory budget; frames are drawn when they are asked for, and results
are dropped. Memory counts from when the model is loaded and has run once: what the process holds, in total and at
most, at a few places of the video.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from machine import held_mib, peak_mib, reset_peak
from made_up import MadeUpClip, build, made_up_queries

from glus.config import InferenceConfig
from glus.inference import engine, live
from glus.inference.budget import MemoryBudget
from glus.modeling.glus import GLUSModel
from glus.text.tokenizer import GlusTokenizer

LIMIT = 1.05
"""Of the longest run's peak over the shortest one's."""
SAMPLES = 10


def results(
    model: GLUSModel, tokenizer: GlusTokenizer, clip: MadeUpClip, expressions: int, gib: float, stream: bool
) -> Iterator[int]:
    """Segment a clip; yields how many frames are done."""
    queries, config, budget = made_up_queries(expressions), InferenceConfig(), MemoryBudget.of_gib(gib)
    if stream:
        texts, frames = [query.expression for query in queries], iter(clip[i] for i in range(len(clip)))
        steps = live.stream(model, tokenizer, frames, texts, config, lookahead=4, budget=budget)
        yield from (done for done, _ in enumerate(steps, start=1))
        return
    found = engine.segment_clip(model, tokenizer, clip, queries, config, budget=budget)
    yield from (done // expressions for done, _ in enumerate(found, start=1))


def watch(steps: Iterator[int], frames: int, device: str) -> dict[str, Any]:
    """Memory, in MiB, while `frames` frames are done: before, at `SAMPLES` places, and at most until each."""
    places = sorted({max(1, frames * (n + 1) // SAMPLES) for n in range(SAMPLES)})
    reset_peak(device)
    started, before, samples = time.process_time(), held_mib(device), []
    for done in itertools.chain(steps, [frames]):
        while places and done >= places[0]:
            samples.append({"frame": places.pop(0), "held": held_mib(device), "peak": peak_mib(device)})
    return {
        "frames": frames,
        "before": before,
        "peak": max(sample["peak"] for sample in samples),
        "seconds": round(time.process_time() - started, 1),
        "samples": samples,
    }


def child(size: str, device: str, precision: str, shape: Sequence[int], how: Sequence[Any], pipe: Any) -> None:
    """In a process of its own: one run."""
    torch.set_num_threads(1)
    model, tokenizer = build(size, device, precision)
    (frames, height, width), (expressions, gib, stream) = shape, how
    for _ in results(model, tokenizer, MadeUpClip(12, height, width), expressions, gib, stream):
        pass
    steps = results(model, tokenizer, MadeUpClip(frames, height, width), expressions, gib, stream)
    pipe.send(watch(steps, frames, device))


def apart(*arguments: Any) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(*arguments, sender))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        raise RuntimeError("the process of a run died") from None
    process.join()
    return found


def flat(runs: Sequence[dict[str, Any]], stream: dict[str, Any]) -> bool:
    """The longest clip takes hardly more than the shortest, a stream's last half hardly more than its first."""
    half = stream["samples"][len(stream["samples"]) // 2 - 1]["peak"]
    return bool(runs[-1]["peak"] <= LIMIT * runs[0]["peak"] and stream["peak"] <= LIMIT * half)


def memory(
    size: str,
    device: str,
    precision: str,
    shape: tuple[int, int],
    expressions: int,
    gib: float,
    lengths: Sequence[int],
    stream_frames: int,
) -> dict[str, Any]:
    """Run clips of `lengths` frames, then a stream; prints a table, returns the figures of the last line."""
    runs = [apart(size, device, precision, (frames, *shape), (expressions, gib, False)) for frames in lengths]
    stream = apart(size, device, precision, (stream_frames, *shape), (expressions, gib, True))
    print(f"{'MiB':12}{'frames':>8}{'before':>10}{'peak':>10}{'seconds':>10}")
    for name, one in (*(("clip", run) for run in runs), ("stream", stream)):
        print(f"{name:12}{one['frames']:8}{one['before']:10.1f}{one['peak']:10.1f}{one['seconds']:10.1f}")
    print("\nstream, MiB held after so many frames")
    for sample in stream["samples"]:
        print(f"{sample['frame']:8}{sample['held']:10.1f}{sample['peak']:10.1f}")
    return {
        "benchmark": "inference_memory",
        "size": size,
        "expressions": expressions,
        "memory_budget_gib": gib,
        "ratio": round(runs[-1]["peak"] / runs[0]["peak"], 4),
        "equal": flat(runs, stream),
        "clips": runs,
        "stream": stream,
        "precision": precision,
        "device": device,
    }
