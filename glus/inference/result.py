"""What `GLUS.segment` returns: masks and scores, and ways to keep them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from glus.inference import exports
from glus.masks import bounding_box, encode_rle
from glus.video import FrameSource


class SegmentResult:
    """Masks of a clip for each expression.

    All `save_` methods return the path, show a bar with `progress=True`, and raise an `InputError` for what cannot
    be written; a file appears whole or not at all.

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

    def save_video(
        self,
        path: str | os.PathLike[str],
        fps: float | None = None,
        alpha: float = 0.45,
        captions: bool = False,
        audio: bool = True,
        progress: bool = False,
    ) -> Path:
        """Write an mp4 with every expression's mask in its own colour over the frames.

        It keeps the source's size (an odd side gets one more row or column), times and sound.

        Args:
            fps: frames per second instead of the source's times; then without sound.
            alpha: opacity of the colours, 0..1.
            captions: put a strip below that says which colour means which sentence.
            audio: keep the sound.
        """
        export = exports.overlay_video(path, self._source, self.expressions, fps, alpha, captions, audio)
        return self._write(path, export, progress)

    def save_masks(self, folder: str | os.PathLike[str], progress: bool = False) -> Path:
        """Write `<folder>/<expression number>/<frame>.png`, single-channel 0/255."""
        return self._write(folder, exports.mask_pngs(folder, self._source, len(self.expressions)), progress)

    def save_palette(self, folder: str | os.PathLike[str], progress: bool = False) -> Path:
        """Write `<folder>/<frame>.png` as in DAVIS: the number of the expression, from 1; of several the first."""
        return self._write(folder, exports.palette_pngs(folder, self._source, len(self.expressions)), progress)

    def save_cutouts(
        self, folder: str | os.PathLike[str], form: exports.CutoutForm = "png", progress: bool = False
    ) -> Path:
        """Write what the masks cover on a transparent ground.

        Args:
            form: "png": `<folder>/<expression number>/<frame>.png`; "webm": `<folder>/<expression number>.webm`.
        """
        export = exports.cutouts(folder, self._source, len(self.expressions), form)
        return self._write(folder, export, progress)

    def save_rle(
        self, path: str | os.PathLike[str], form: exports.RleForm = "youtube-vis", progress: bool = False
    ) -> Path:
        """Write run-length codes, boxes, areas and scores as JSON in the form of YouTube-VIS or COCO."""
        return self._write(path, exports.rle_json(path, self._source, self.expressions, form), progress)

    def save_boxes(self, path: str | os.PathLike[str], progress: bool = False) -> Path:
        """Write a CSV with a row per frame and expression: x, y, width, height, score."""
        return self._write(path, exports.boxes_csv(path, self._source, self.expressions), progress)

    def to_rle(self) -> list[list[dict[str, Any]]]:
        """COCO run-length encodings, `[expression][frame] -> {"size": [H, W], "counts": str}`."""
        return [[encode_rle(mask.numpy()) for mask in masks] for masks in self.masks]

    def boxes(self) -> torch.Tensor:
        """Smallest boxes around the masks: int64 (expressions, frames, 4), x, y, width, height in pixels; all 0
        where a mask is empty."""
        found = [[bounding_box(mask.numpy()) or (0, 0, 0, 0) for mask in masks] for masks in self.masks]
        return torch.tensor(found, dtype=torch.int64)

    def _write(self, path: str | os.PathLike[str], export: exports.Export, progress: bool) -> Path:
        with export as put:
            for index in tqdm(range(len(self._source)), unit="frame", desc="writing", disable=not progress):
                put(index, self.masks[:, index].numpy(), self.scores[:, index].tolist())
        return Path(path)
