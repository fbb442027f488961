"""DAVIS 2017 semi-supervised evaluation: the official code's way against ours, on one core.

The original's way is rebuilt from its description (reference evaluation.md 3.6 and 7.1): a sequence is loaded
whole, its objects are separated by multiplying float64 stacks, J runs on stacks and F frame by frame with
OpenCV dilations. Both sides read the same palette PNGs and end in the same per-object statistics. Time is CPU
time of one process; each side runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from evaluation_original import boundary, region
from PIL import Image

from glus.evaluation.davis import SEMI_SUPERVISED
from glus.evaluation.davis_results import folder_dataset, score_dataset, summarise

HEIGHT, WIDTH = 480, 854
Scores = dict[str, list[list[float]]]


# --- the original's way ---------------------------------------------------------------------------------------


def load_stack(folder: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All label maps of a sequence as float64 [frames, H, W] with void set to 0, and the void masks."""
    first = np.array(Image.open(folder / f"{names[0]}.png"))
    stack = np.zeros((len(names), *first.shape))
    for i, name in enumerate(names):
        stack[i] = np.array(Image.open(folder / f"{name}.png"))
    void = stack == 255
    stack[void] = 0
    return stack, void


def separate(stack: np.ndarray, count: int) -> np.ndarray:
    """Bool [objects, frames, H, W], by comparing with a float64 stack of constant planes."""
    planes = np.ones((count, *stack.shape))
    planes = planes * np.arange(1, count + 1)[:, None, None, None]
    return planes == stack[None]


def statistics(values: np.ndarray) -> list[float]:
    ids = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(np.uint8)
    bins = [values[ids[i] : ids[i + 1] + 1] for i in range(4)]
    decay = np.nanmean(bins[0]) - np.nanmean(bins[3])
    return [float(np.nanmean(values)), float(np.mean(values > 0.5)), float(decay)]


def original(root: Path) -> Scores:
    """Object -> [statistics of J, statistics of F], by the official code's steps."""
    result: Scores = {}
    for folder in sorted((root / "truth").iterdir()):
        names = sorted(p.stem for p in folder.iterdir())
        stack, _ = load_stack(folder, names)
        count = int(stack[0].max())
        truth = separate(stack, count)[:, 1:-1]
        predicted, _ = load_stack(root / "predicted" / folder.name, names[1:-1])
        ids = int(predicted.max())
        pred = np.zeros_like(truth)
        for i in range(ids):
            pred[i] = predicted == i + 1
        for i in range(count):
            j = region(truth[i], pred[i])
            f = np.array([boundary(truth[i, t], pred[i, t]) for t in range(truth.shape[1])])
            result[f"{folder.name}_{i + 1}"] = [statistics(j), statistics(f)]
    return result


# --- ours -----------------------------------------------------------------------------------------------------


def ours(root: Path) -> Scores:
    """The same by `glus.evaluation`, in one process."""
    dataset = folder_dataset(root / "truth", root / "predicted", SEMI_SUPERVISED)
    scores = summarise(SEMI_SUPERVISED, score_dataset(dataset, workers=1))
    return {name: [j.as_list(), scores.boundary[name].as_list()] for name, j in scores.region.items()}


# --- data and measurement -------------------------------------------------------------------------------------


def write_sequences(root: Path, sequences: int, frames: int, objects: int, seed: int) -> None:
    """Palette PNGs: ragged blobs that wander and overlap; predictions are shifted and eaten at the edges."""
    random = np.random.default_rng(seed)
    # 256 colours, as in DAVIS, make it an 8-bit file.
    palette = [v for i in range(256) for v in (37 * i % 256, 91 * i % 256, 153 * i % 256)]
    for s in range(sequences):
        shape = random.normal(size=(objects, HEIGHT // 8, WIDTH // 8)).astype(np.float32)
        rough = np.stack([cv2.resize(cv2.GaussianBlur(r, (0, 0), 1.5), (WIDTH, HEIGHT)) for r in shape])
        centre = random.uniform(0.25, 0.75, size=(objects, 2))
        size = random.uniform(0.06, 0.2, size=objects)
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        for t in range(frames):
            for part, noise in (("truth", 0.0), ("predicted", 1.0)):
                labels = np.zeros((HEIGHT, WIDTH), np.uint8)
                for o in range(objects):
                    cy, cx = centre[o] + 0.15 * np.sin(0.07 * t + np.array([o, 2.0 * o])) + noise * 0.006
                    away = np.hypot((y - cy * HEIGHT) / HEIGHT, (x - cx * WIDTH) / HEIGHT) / size[o]
                    labels[away + 0.8 * np.roll(rough[o], int(noise * 5), axis=1) < 1] = o + 1
                path = root / part / f"sequence{s}" / f"{t:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(labels)
                image.putpalette(palette)
                image.save(path)


def measure(function: Callable[[Path], Scores], root: Path, repeats: int, pipe: Any) -> None:
    """In a process of its own: one unmeasured run on warm-up data, then the best CPU time of `repeats`."""
    cv2.setNumThreads(1)
    function(root / "warm_up")
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = function(root / "data")
        seconds.append(time.process_time() - start)
    pipe.send((min(seconds), peak_mib(), result))


def peak_mib() -> float:
    """Peak memory of this process since it began; `getrusage` would count what its parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def run_apart(function: Callable[[Path], Scores], root: Path, repeats: int) -> tuple[float, float, Scores]:
    """(CPU seconds, peak MiB, result) of a function run in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(function, root, repeats, sender))
    process.start()
    sender.close()
    try:
        answer: tuple[float, float, Scores] = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} died") from None
    finally:
        process.join()
    return answer


def davis_semi_supervised(quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run both sides on the same made-up sequences; the figures of the benchmark's last line."""
    sequences, frames, objects = (2, 20, 2) if quick else (4, 60, 2)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_sequences(root / "warm_up", 1, 4, objects, seed + 1)
        write_sequences(root / "data", sequences, frames, objects, seed)
        slow, slow_peak, expected = run_apart(original, root, 1 if quick else 2)
        fast, fast_peak, found = run_apart(ours, root, 3)
    pairs = sequences * objects * (frames - 2)
    return {
        "benchmark": "davis_semi_supervised",
        "ratio": round(slow / fast, 2),
        "equal": found == expected,
        "sequences": sequences,
        "pairs": pairs,
        "original_ms_per_pair": round(1e3 * slow / pairs, 3),
        "ours_ms_per_pair": round(1e3 * fast / pairs, 3),
        "original_peak_mib": round(slow_peak),
        "peak_mib": round(fast_peak),
        "device": "cpu, one core",
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 sequences of 20 frames (default: 4 of 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up masks (default: 0)")
    args = parser.parse_args(argv)
    print(json.dumps(davis_semi_supervised(args.quick, args.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
