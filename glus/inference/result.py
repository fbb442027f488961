"""What `GLUS.segment` returns: masks and scores, and ways to keep them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glus.io import disk_errors, safe_name
from glus.masks import encode_rle, write_mask_png
from glus.overlay import overlay
from glus.video import FrameSource, video_writer


class SegmentResult:
    """Masks of a clip for each expression.

    Attributes:
        expressions: the sentences, in the order given.
        masks: bool tensor (expressions, frames, height, width).
        scores: float tensor (expressions, frames), the decoder's predicted IoU, 0..1; 0 where it failed.
        failed: bool tensor (expressions, frames); the model did not answer [SEG], the mask is blank.
        frame_names: one name per frame.
    """

    def __init__(
        self,
        source: FrameSource,
        expressions: Sequence[str],
        masks: torch.Tensor,
        scores: torch.Tensor,
        failed: torch.Tensor,
    ) -> None:
        self._source = source
        self.expressions = list(expressions)
        self.masks = masks
        self.scores = scores
        self.failed = failed
        self.frame_names = list(source.names)

    def save_video(self, path: str | os.PathLike[str], fps: float | None = None, alpha: float = 0.45) -> Path:
        """Write an mp4 with every expression's mask in its own colour over the frames; atomic.

        Args:
            fps: frames per second; default that of the source.
        """
        with video_writer(path, self._source.fps if fps is None else fps) as writer:
            for index in range(len(self._source)):
                writer.write(overlay(self._source[index], self.masks[:, index].numpy(), alpha=alpha))
        return Path(path)

    def save_masks(self, folder: str | os.PathLike[str]) -> Path:
        """Write `<folder>/<expression number>/<frame>.png`, single-channel 0/255, each file atomically."""
        root = Path(folder)
        for number in range(len(self.expressions)):
            place = root / str(number)
            with disk_errors(place):
                place.mkdir(parents=True, exist_ok=True)
                for index, name in enumerate(self.frame_names):
                    safe_name(name, "video", "frame name")
                    write_mask_png(place / f"{name}.png", self.masks[number, index].numpy())
        return root

    def to_rle(self) -> list[list[dict[str, Any]]]:
        """COCO run-length encodings, `[expression][frame] -> {"size": [H, W], "counts": str}`."""
        return [[encode_rle(mask.numpy()) for mask in masks] for masks in self.masks]
