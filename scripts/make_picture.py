"""Draw docs/glus-tiny.png: frames of a generated video with what the shipped model finds in them, by sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from glus import GLUS
from glus.data.synthetic import SyntheticConfig, generate_video
from glus.overlay import caption_strip, captioned, overlay

ROOT = Path(__file__).resolve().parents[1]
SERIES = 78
"""Never trained on, and not what docs/tiny.md measures."""


def draw(index: int, count: int, columns: int) -> np.ndarray:
    """uint8 RGB picture: `columns` frames of video `index`, its first `count` sentences about movement."""
    video = generate_video(SERIES, index, SyntheticConfig())
    texts = [s.text for s in video.sentences if s.kind == "motion"][:count]
    masks = np.asarray(GLUS.from_pretrained(ROOT / "checkpoints" / "glus-tiny").segment(video.frames, texts).masks)
    shown = np.linspace(0, len(video.frames) - 1, columns).round().astype(int)
    # Grey behind the masks: the objects' own colours would mix with those of the sentences.
    grey = [np.repeat(cv2.cvtColor(video.frames[t], cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2) for t in shown]
    tinted = [overlay(frame, masks[:, t], alpha=0.6) for frame, t in zip(grey, shown, strict=True)]
    rows = (np.concatenate([video.frames[t] for t in shown], axis=1), np.concatenate(tinted, axis=1))
    row = np.concatenate(rows)
    return captioned(row, caption_strip(row.shape[1], texts))


def main(argv: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "glus-tiny.png")
    parser.add_argument("--video", type=int, default=5, help=f"number in series {SERIES}")
    parser.add_argument("--sentences", type=int, default=3)
    parser.add_argument("--frames", type=int, default=5)
    args = parser.parse_args(argv)
    picture = draw(args.video, args.sentences, args.frames)
    picture = cv2.resize(picture, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    return 0 if cv2.imwrite(str(args.out), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
