"""Our evaluation against the original's way of computing it, on one core in one run.

Parts: `core` (J and F of a decoded prediction against a run-length coded ground truth, masks in memory), `path`
(the whole eval_mevis path on the 1-bit PNGs that GLUS inference writes; its ratio is the program's), `path_8bit`
(on 8-bit gray PNGs as OpenCV writes them) and `davis` (official semi-supervised DAVIS). CPU time, repeats
interleaved, medians; `unshared` scores every expression by itself, without sharing decoded ground truth. Real
masks come from the folder of goldens (GLUS_CONFORMANCE); without it blobs are drawn.

Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import evaluation_original as original
import numpy as np
from davis import davis_semi_supervised

from glus.evaluation.bitmask import BitMask
from glus.evaluation.expressions import Expression, VideoJob, score_video
from glus.evaluation.metrics import frame_scores
from glus.evaluation.tracks import PngTrack, RleTrack
from glus.masks import decode_rle, encode_rle, write_mask_png

ROOT = Path(__file__).resolve().parents[1]
WANTED = {"core": 30.0, "path": 10.0, "path_8bit": 5.0, "davis": 12.0}


@dataclass(frozen=True)
class Clip:
    """One video: masks per annotation key, and (name, annotation keys, predicted RLE per frame) per expression."""

    name: str
    frames: list[str]
    shape: tuple[int, int]
    masks: dict[str, list[Any]]
    expressions: list[tuple[str, tuple[str, ...], list[Any]]]


def golden_clips(folder: Path) -> Iterator[Clip]:
    """The MeViS case of the conformance folder."""
    cases = folder / "cases" / "mevis"
    names = ("meta_expressions", "mask_dict", "pred_rle")
    meta, masks, predicted = (json.loads((cases / f"{name}.json").read_text()) for name in names)
    for name, video in meta["videos"].items():
        entries = [
            (exp_id, tuple(str(a) for a in entry["anno_id"]), predicted[name][exp_id])
            for exp_id, entry in video["expressions"].items()
        ]
        wanted = {key for _, keys, _ in entries for key in keys}
        yield Clip(
            name, video["frames"], (video["height"], video["width"]), {k: masks[k] for k in wanted}, entries
        )


def drawn_clips(videos: int = 4, frames: int = 30) -> Iterator[Clip]:
    """Wobbling blobs at 480x854, and predictions that are shifted and ragged."""
    rng = np.random.default_rng(0)
    noise = [cv2.GaussianBlur(rng.standard_normal((480, 854)).astype(np.float32), (0, 0), s) for s in (6, 40)]
    y, x = np.mgrid[0:480, 0:854]
    for v in range(videos):
        masks: dict[str, list[Any]] = {"0": [], "1": []}
        predicted: dict[str, list[Any]] = {"0": [], "1": []}
        for t in range(frames):
            for k in masks:
                cx, cy, r = 250 + 300 * int(k) + 4 * t, 240 + 30 * v, 60 + 20 * v
                level = np.hypot(x - cx, y - cy) / r + 8 * noise[1]
                masks[k].append(encode_rle(level < 1))
                predicted[k].append(encode_rle(np.roll(level, (3, 2), (0, 1)) + 0.6 * noise[0] < 1))
        pairs = [("0", ("0",), predicted["0"]), ("1", ("1",), predicted["1"]), ("2", ("0", "1"), predicted["0"])]
        yield Clip(f"blobs-{v}", [f"{i:05d}" for i in range(frames)], (480, 854), masks, pairs)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and result."""
    gc.collect()
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def compare(theirs: Callable[[], Any], ours: Callable[[], Any], repeats: int, pairs: int) -> dict[str, Any]:
    """Run both in turns; ratio of the medians, milliseconds per pair, and whether the results are the same."""
    ours()  # compile
    times: dict[str, list[float]] = {"original": [], "ours": []}
    equal = True
    for _ in range(repeats):
        seconds, expected = timed(theirs)
        times["original"].append(seconds)
        seconds, found = timed(ours)
        times["ours"].append(seconds)
        equal &= bool(np.array_equal(expected, found))
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "ratio": round(median["original"] / median["ours"], 2),
        "equal": equal,
        "pairs": pairs,
        **{f"{name}_ms_per_pair": round(1e3 * value / pairs, 4) for name, value in median.items()},
    }


def core_part(clips: list[Clip], repeats: int) -> dict[str, Any]:
    """J and F with masks in memory; ground truth as run-length code, prediction as uint8 0/255."""
    pairs = []
    for clip in clips:
        for _, keys, predicted in clip.expressions:
            for t in range(0, len(clip.frames), 3):
                array = decode_rle(predicted[t], *clip.shape, clip.name).astype(np.uint8) * np.uint8(255)
                pairs.append((clip, keys, t, array))

    def theirs() -> list[tuple[float, float]]:
        scores = []
        for clip, keys, t, array in pairs:
            gt = original.ground_truth(clip.masks, keys, t, clip.shape)
            scores.append((original.region(gt, array), original.boundary(gt, array)))
        return scores

    def ours() -> list[tuple[float, float]]:
        scores = []
        for clip, keys, t, array in pairs:
            gt = BitMask.zeros(*clip.shape)
            for key in keys:
                if clip.masks[key][t]:
                    gt = gt | BitMask.from_rle(clip.masks[key][t])
            scores.append(frame_scores(gt, BitMask.pack(array)))
        return scores

    return compare(theirs, ours, repeats, len(pairs))


def jobs_of(clips: list[Clip], root: Path) -> list[VideoJob]:
    """What eval_mevis makes of the files."""
    jobs = []
    for clip in clips:
        expressions = tuple(
            Expression(clip.name, exp, "", keys, PngTrack(root / clip.name / exp), exp)
            for exp, keys, _ in clip.expressions
        )
        tracks = {key: RleTrack(masks, key) for key, masks in clip.masks.items()}
        jobs.append(VideoJob(clip.name, tuple(clip.frames), expressions, tracks, "", clip.shape))
    return jobs


def path_part(clips: list[Clip], repeats: int, root: Path, bits: int) -> dict[str, Any]:
    """The eval_mevis path from files to per-frame scores, JSON parsing excepted on both sides."""
    pairs = 0
    for clip in clips:
        for exp, _, predicted in clip.expressions:
            folder = root / clip.name / exp
            folder.mkdir(parents=True)
            for name, entry in zip(clip.frames, predicted, strict=True):
                mask = decode_rle(entry, *clip.shape, clip.name)
                if bits == 1:
                    write_mask_png(folder / f"{name}.png", mask)
                else:
                    cv2.imwrite(str(folder / f"{name}.png"), mask.astype(np.uint8) * np.uint8(255))
                pairs += 1
    jobs = jobs_of(clips, root)
    alone = [replace(job, expressions=(one,)) for job in jobs for one in job.expressions]

    def theirs() -> Any:
        scores = [
            original.mevis_expression(root / clip.name / exp, clip.frames, clip.masks, keys)
            for clip in clips
            for exp, keys, _ in clip.expressions
        ]
        return np.array([value for pair in scores for value in np.concatenate(pair)])

    def ours(which: list[VideoJob]) -> Any:
        scores = [one for job in which for one in score_video(job)]
        return np.array([value for one in scores for value in [*one.region, *one.boundary]])

    result = compare(theirs, lambda: ours(jobs), repeats, pairs)
    seconds = statistics.median(timed(lambda: ours(alone))[0] for _ in range(repeats))
    result["ours_unshared_ms_per_pair"] = round(1e3 * seconds / pairs, 4)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("GLUS_CONFORMANCE", ROOT.parent / "shared" / "conformance")) / "eval"
    parser.add_argument("--masks", type=Path, default=default, help="folder of goldens (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="less data, 3 repeats: within a minute on 2 cores")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    real = (args.masks / "cases" / "mevis").is_dir()
    clips = list(golden_clips(args.masks) if real else drawn_clips())
    repeats = min(args.repeats, 3) if args.quick else args.repeats
    if args.quick:
        clips = [replace(clip, expressions=clip.expressions[:2]) for clip in clips[::2]]
    parts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        parts["core"] = core_part(clips, repeats)
        parts["path"] = path_part(clips, repeats, Path(folder) / "1bit", 1)
        parts["path_8bit"] = path_part(clips, repeats, Path(folder) / "8bit", 8)
    parts["davis"] = davis_semi_supervised(args.quick)
    for name, part in parts.items():
        verdict = "met" if part["ratio"] >= WANTED[name] else f"missed by {1 - part['ratio'] / WANTED[name]:.0%}"
        sys.stdout.write(f"{name:<10} {part['ratio']:6.1f}x  (wanted {WANTED[name]:.0f}x: {verdict})  {part}\n")
    line = {
        "benchmark": "evaluation",
        "ran": "eval_mevis path on 1-bit PNGs, original's way against ours, CPU time on one core",
        "ratio": parts["path"]["ratio"],
        "equal": all(part["equal"] for part in parts.values()),
        "masks": "real" if real else "drawn",
        "pairs": parts["path"]["pairs"],
        "repeats": repeats,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "device": f"cpu ({platform.machine()})",
        "parts": parts,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
