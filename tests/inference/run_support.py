"""A small data set in MeViS layout, and the parts of a run that tests look at."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

FAKE_RUN = Path(__file__).with_name("fake_run.py")


@dataclass
class DataSet:
    """`root/mevis/valid_u` with random frames; `videos` maps a video to its (frame names, expressions)."""

    root: Path
    videos: dict[str, tuple[list[str], dict[str, str]]]

    def write(self) -> DataSet:
        rng = np.random.default_rng(0)
        base = self.root / "mevis" / "valid_u"
        meta: dict[str, Any] = {"videos": {}}
        for video, (frames, expressions) in self.videos.items():
            folder = base / "JPEGImages" / video
            folder.mkdir(parents=True)
            for name in frames:
                pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48))
                cv2.imwrite(str(folder / f"{name}.jpg"), pixels)
            meta["videos"][video] = {
                "frames": frames,
                "expressions": {k: {"exp": text} for k, text in expressions.items()},
            }
        (base / "meta_expressions.json").write_text(json.dumps(meta))
        return self

    def frame(self, video: str, name: str) -> Path:
        return self.root / "mevis" / "valid_u" / "JPEGImages" / video / f"{name}.jpg"

    @property
    def mask_files(self) -> set[str]:
        return {
            f"{video}/{exp_id}/{name}.png"
            for video, (frames, expressions) in self.videos.items()
            for exp_id in expressions
            for name in frames
        }


@dataclass
class Ended:
    status: int
    out: str
    err: str


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of its children."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def summary(save: Path, host: int | None = None) -> dict[str, Any]:
    """What a run, or one of its hosts, reports."""
    found: dict[str, Any] = json.loads((save / f"summary{'' if host is None else f'-{host}'}.json").read_text())
    return found


Launch = Callable[..., "subprocess.Popen[str]"]


def mask_bytes(save: Path) -> dict[str, bytes]:
    """Every mask below `save` by relative path."""
    return {
        path.relative_to(save).as_posix(): path.read_bytes()
        for path in save.glob("[!.]*/**/*.png")  # .glus is not entered: folders come and go there
    }
