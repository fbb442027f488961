"""`python -m glus segment`: one's own video and sentences in, an overlay video and masks out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from glus.errors import InputError
from glus.inference.infer_command import HelpFormatter, add_model_arguments, inference_config, model_settings
from glus.inference.starts import add_start_arguments, check_start, find_start, steps
from glus.inference.worker import load_glus
from glus.io import disk_errors, safe_name
from glus.masks import write_mask_png
from glus.overlay import caption_strip, captioned, overlay
from glus.text.prompts import check_expression
from glus.video import open_frames, video_writer


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m glus segment",
        description="Segment a video by one or more sentences and write an overlay video, a colour per sentence.",
        formatter_class=HelpFormatter,
    )
    p.add_argument("video", help="video file, or folder of images")
    p.add_argument("expressions", nargs="+", metavar="sentence", help="what to segment, e.g. 'the red car'")
    p.add_argument("-o", "--output", required=True, help="overlay video to write (.mp4)")
    p.add_argument("--masks", help="folder for the masks, <sentence number from 0>/<frame>.png (0/255)")
    add_start_arguments(p)
    add_model_arguments(p)
    return p


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    texts = [check_expression(text, f"sentence {i + 1}") for i, text in enumerate(args.expressions)]
    config = inference_config(args)
    check_start(args)
    if os.path.exists(args.output) and os.path.exists(args.video) and os.path.samefile(args.output, args.video):
        raise InputError(f"--output {args.output} is the video itself; name another file")
    frames = open_frames(args.video)
    for name in frames.names:
        safe_name(name, args.video, "frame name")
    strip = caption_strip(frames[0].shape[1], texts)
    folders = [Path(args.masks) / str(i) for i in range(len(texts))] if args.masks else []
    for folder in (Path(args.output).parent, *folders):
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    failures = 0
    # The output is opened before the model: what cannot be written shows at once.
    with video_writer(args.output, frames.fps) as writer:
        start = find_start(args, frames, texts)
        glus = load_glus(model_settings(args, None if args.device == "auto" else args.device))
        started = time.monotonic()
        options = {"config": config, "memory_budget": args.memory_budget}
        for index, masks, _, failed in steps(glus, frames, texts, start.keys, **options):
            failures += failed
            writer.write(captioned(overlay(frames[index], masks), strip))
            for folder, mask in zip(folders, masks, strict=bool(folders)):
                path = folder / f"{frames.names[index]}.png"
                with disk_errors(path):
                    write_mask_png(path, mask)
        seconds = time.monotonic() - started
    rate = len(frames) / seconds
    sentences = f"{len(texts)} sentence" + "s" * (len(texts) != 1)
    lines = [f"{len(frames)} frames, {sentences} in {seconds:.1f} s ({rate:.2f} frames/s)"]
    if failures:
        lines.append(f"{failures} of {len(frames) * len(texts)} masks are blank: the model did not answer [SEG]")
    lines += start.tell(args, frames, texts)
    lines.append(f"overlay video: {args.output}")
    if args.masks:
        lines.append(f"masks: {args.masks}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
