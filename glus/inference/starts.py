"""Where `python -m glus segment` starts: at the first frame, at one that is named, or where a selector says."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glus.errors import InputError
from glus.inference.curves import score_chart
from glus.inference.runner import bar_pace
from glus.inference.selection import frames_named
from glus.io import disk_errors, write_bytes
from glus.video import FrameSource

if TYPE_CHECKING:
    from glus.api import GLUS

AUTO = "auto"


def add_start_arguments(p: argparse.ArgumentParser) -> None:
    """Which frame to start from."""
    add = p.add_argument_group("where to start").add_argument
    add(
        "--key_frame",
        metavar="FRAME",
        help="frame to start from, forward and then backward: its name or number, or auto: what --selector "
        "chooses for each sentence; default: the first",
    )
    add("--selector", metavar="DIR", help="key-frame selector (KFS), for --key_frame auto")
    add("--scores", metavar="FILE", help="picture of the selector's scores over the frames (.svg)")


def check_start(args: argparse.Namespace) -> None:
    """Raise an `InputError` for options that do not go together."""
    if args.key_frame == AUTO and not args.selector:
        raise InputError("--key_frame auto needs --selector, the folder of a key-frame selector (KFS)")
    if args.selector and args.key_frame != AUTO:
        raise InputError("--selector chooses frames for --key_frame auto; add it, or leave the selector out")
    if args.scores and args.key_frame != AUTO:
        raise InputError("--scores shows what a selector says; it needs --key_frame auto and --selector")
    if args.scores and Path(args.scores).suffix != ".svg":
        raise InputError(f"--scores must end in .svg, found {args.scores}")


@dataclass(frozen=True)
class Start:
    """The frame to start from of each sentence, and the selector's scores (sentences, frames) if it chose them."""

    keys: list[int]
    scores: list[list[float]] | None = None

    def tell(self, args: argparse.Namespace, frames: FrameSource, texts: Sequence[str]) -> list[str]:
        """Write the picture that `--scores` asks for; returns what to say about a choice."""
        if self.scores is None:
            return []
        lines = [
            f"{text}: key frame {frames.names[key]}, score {scores[key]:.4g}"
            for text, key, scores in zip(texts, self.keys, self.scores, strict=True)
        ]
        if args.scores:
            path = Path(args.scores)
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, score_chart(self.scores, frames.names, texts, self.keys).encode())
            lines.append(f"scores: {path}")
        return lines


def find_start(args: argparse.Namespace, frames: FrameSource, texts: Sequence[str]) -> Start:
    """By `--key_frame`, of a video.

    Raises:
        InputError: no such frame, or the selector cannot be loaded or asked.
    """
    if args.key_frame == AUTO:
        return _ask_selector(args, frames, texts)
    if args.key_frame is None:
        return Start([0] * len(texts))
    found = frames_named(args.key_frame, frames.names)
    if len(found) != 1:
        raise InputError(
            f"--key_frame {args.key_frame!r} {'fits several frames' if found else 'is no frame'} of {args.video} "
            f"(frames {frames.names[0]} to {frames.names[-1]})"
        )
    return Start(found * len(texts))


def _ask_selector(args: argparse.Namespace, frames: FrameSource, texts: Sequence[str]) -> Start:
    """The frame with the highest score of each sentence; the selector does not stay in memory."""
    from glus.inference.budget import MemoryBudget
    from kfs.frame_scores import best_frame
    from kfs.scoring import score_video
    from kfs.worker import load_selector

    settings = {"version": args.selector, "vision_tower": None, "precision": args.precision}
    selector = load_selector({**settings, "device": None if args.device == "auto" else args.device})
    budget = MemoryBudget.of_gib(args.memory_budget) if args.memory_budget is not None else None
    scores = score_video(selector.model, selector.tokenizer, frames, texts, budget=budget)
    return Start([best_frame(values) for values in scores], scores)


def steps(
    glus: GLUS, frames: FrameSource, texts: Sequence[str], keys: Sequence[int], **options: Any
) -> Iterator[tuple[int, npt.NDArray[np.bool_], list[float], int]]:
    """Index, masks (sentences, height, width), scores and number of failures of each frame, in order.

    From the first frame on they are had one by one; with other key frames, only when all is done.

    Args:
        options: those of `GLUS.segment` and `GLUS.stream`.
    """
    if any(keys):
        done = glus.segment(frames, texts, key_frames=keys, progress=True, **options)
        for index in range(len(frames)):
            masks, scores = done.masks[:, index].numpy(), done.scores[:, index].tolist()
            yield index, masks, scores, int(done.failed[:, index].sum())
        return
    found = glus.stream(frames, texts, **options)
    for step in tqdm(found, total=len(frames), unit="frame", desc="segmenting", mininterval=bar_pace()):
        yield step.frame, step.masks.numpy(), step.scores.tolist(), int(step.failed.sum())
