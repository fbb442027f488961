"""Clips to try the page with: videos of the generator, made when the page starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.video import generate_video
from glus.video import write_video

SEED = 2026
SENTENCES = 2
KINDS = ("static", "relation", "motion")


@dataclass(frozen=True)
class BundledClip:
    """A clip and sentences about it, one per line."""

    path: Path
    sentences: str


def bundled_clips(folder: Path, count: int = 3, config: SyntheticConfig | None = None) -> dict[str, BundledClip]:
    """Write clips into `folder`, which exists: name -> clip."""
    clips = {}
    for number in range(count):
        video = generate_video(SEED, number, config)
        path = folder / f"shapes-{number + 1}.mp4"
        write_video(path, video.frames)
        # looks before places before movement, and short ones first: what the bundled model knows best
        told = sorted(video.sentences, key=lambda s: (KINDS.index(s.kind), len(s.text)))
        texts = [sentence.text for sentence in told[:SENTENCES]]
        clips[f"Coloured shapes {number + 1}"] = BundledClip(path, "\n".join(texts))
    return clips
