"""`python -m glus segment`: one's own video and sentences in, an overlay video and masks out."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from glus.errors import InputError
from glus.inference import exports
from glus.inference.infer_command import HelpFormatter, add_model_arguments, inference_changes, model_settings
from glus.inference.starts import add_start_arguments, check_start, find_start, steps
from glus.inference.worker import load_glus
from glus.io import disk_errors
from glus.text.prompts import check_expression
from glus.video import FrameSource, open_frames, select

OUTPUTS = {
    "output": "overlay video",
    "masks": "masks",
    "palette": "palette PNGs",
    "rle": "run-length codes",
    "boxes": "boxes",
    "cutouts": "cut-outs",
}
_FILES = ("output", "rle", "boxes")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m glus segment",
        description="Segment a video by one or more sentences and write an overlay video, a colour per sentence.",
        epilog="docs/own_video.md shows all this with examples.",
        formatter_class=HelpFormatter,
    )
    p.add_argument("video", help="video file, or folder of images")
    p.add_argument("expressions", nargs="+", metavar="sentence", help="what to segment, e.g. 'the red car'")
    p.add_argument("-o", "--output", required=True, help="overlay video to write (.mp4)")
    add_frame_arguments(p)
    add = p.add_argument_group("what to write").add_argument
    add("--captions", action="store_true", help="a strip below the overlay says which colour is which sentence")
    add("--no_audio", action="store_true", help="leave the sound out of the overlay")
    add("--masks", metavar="DIR", help="masks, <sentence number from 0>/<frame>.png (0/255)")
    add("--palette", metavar="DIR", help="one palette PNG per frame as in DAVIS: sentence number from 1")
    add("--rle", metavar="FILE", help="run-length codes, boxes and scores as JSON")
    add("--rle_form", choices=exports.RLE_FORMS, default="youtube-vis", help="form of --rle")
    add("--boxes", metavar="FILE", help="boxes as CSV, a row per frame and sentence")
    add("--cutouts", metavar="DIR", help="the objects alone on a transparent ground")
    add("--cutout_form", choices=exports.CUTOUT_FORMS, default="png", help="a picture per frame, or a video")
    add_start_arguments(p)
    add_model_arguments(p)
    return p


def add_frame_arguments(p: argparse.ArgumentParser) -> None:
    """Which frames of the video to take, and how large; the arguments of `glus.video.select`."""
    add = p.add_argument_group("frames").add_argument
    add("--start", type=seconds, metavar="TIME", help="from here on; seconds, or minutes:seconds")
    add("--end", type=seconds, metavar="TIME", help="up to here, which is left out")
    add("--fps", type=float, metavar="RATE", help="at most so many frames per second")
    add("--max_frames", type=int, metavar="N", help="at most so many frames, evenly spread")
    add("--resize", type=int, metavar="PIXELS", help="make the longer side so long, if it is longer")


def seconds(text: str) -> float:
    """Seconds from `90`, `1:30` or `0:01:30.5`."""
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    texts = [check_expression(text, f"sentence {i + 1}") for i, text in enumerate(args.expressions)]
    inference = inference_changes(args)
    check_start(args)
    places = {name: place for name in OUTPUTS if (place := getattr(args, name)) is not None}
    for name, place in places.items():
        if os.path.exists(place) and os.path.exists(args.video) and os.path.samefile(place, args.video):
            raise InputError(f"--{name} {place} is the video itself; name another place")
    frames = select(
        open_frames(args.video, progress=sys.stderr.isatty()),
        start=args.start,
        end=args.end,
        fps=args.fps,
        max_frames=args.max_frames,
        resize=args.resize,
    )
    failures = 0
    with ExitStack() as stack:
        # The outputs are opened before the model: what cannot be written shows at once.
        puts = [stack.enter_context(export) for export in open_exports(args, frames, texts)]
        start = find_start(args, frames, texts)
        glus = load_glus(model_settings(args, None if args.device == "auto" else args.device))
        config = dataclasses.replace(glus.config.inference, **inference)
        started = time.monotonic()
        options = {"config": config, "memory_budget": args.memory_budget}
        for index, masks, scores, failed in steps(glus, frames, texts, start.keys, **options):
            failures += failed
            for put in puts:
                put(index, masks, scores)
        duration = time.monotonic() - started
    sentences = f"{len(texts)} sentence" + "s" * (len(texts) != 1)
    lines = [f"{len(frames)} frames, {sentences} in {duration:.1f} s ({len(frames) / duration:.2f} frames/s)"]
    if failures:
        lines.append(f"{failures} of {len(frames) * len(texts)} masks are blank: the model did not answer [SEG]")
    lines += start.tell(args, frames, texts)
    lines += [f"{OUTPUTS[name]}: {place}" for name, place in places.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def open_exports(args: argparse.Namespace, frames: FrameSource, texts: Sequence[str]) -> list[exports.Export]:
    """The exports asked for; makes the folders of their files."""
    for name in _FILES:
        if (place := getattr(args, name)) is not None:
            with disk_errors(Path(place).parent):
                Path(place).parent.mkdir(parents=True, exist_ok=True)
    wanted: list[exports.Export] = [
        exports.overlay_video(args.output, frames, texts, captions=args.captions, audio=not args.no_audio)
    ]
    if args.masks is not None:
        wanted.append(exports.mask_pngs(args.masks, frames, len(texts)))
    if args.palette is not None:
        wanted.append(exports.palette_pngs(args.palette, frames, len(texts)))
    if args.rle is not None:
        wanted.append(exports.rle_json(args.rle, frames, texts, args.rle_form))
    if args.boxes is not None:
        wanted.append(exports.boxes_csv(args.boxes, frames, texts))
    if args.cutouts is not None:
        wanted.append(exports.cutouts(args.cutouts, frames, len(texts), args.cutout_form))
    return wanted
