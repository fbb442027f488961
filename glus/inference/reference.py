"""The reference schedule: one window at a time, frame by frame, as reference glus.md 7.4 describes a pass.

It does the work of the original: every window's images go through CLIP anew, all positions of every window through
the language model, its head and the [SEG] head, SAM-2's image encoder runs for every frame of every expression
(section 10; its waiting for the device, D23, is not imitated, and frames are decoded once per expression). The
engine must give the same masks with less; tests and the benchmark hold it to that.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from glus.config import InferenceConfig
from glus.data.transforms import clip_image, sam_image
from glus.errors import InputError
from glus.inference.queries import FrameResult, Query, open_dialog
from glus.inference.selection import context_frames, passes
from glus.modeling.glus import GLUSModel, Readout, lowest_argmax
from glus.modeling.mask_decoder import FrameFeatures, MaskOutput, upsample_logits
from glus.modeling.memory import MemoryEntry
from glus.text.tokenizer import GlusTokenizer
from glus.video import FrameSource


@dataclass(frozen=True)
class StepTrace:
    """What happened inside one step, for tests and analysis; `output` and `memory` are None for a failed frame."""

    frame: int
    input_ids: list[int]
    window_frames: list[int]
    recalled: list[int]
    readout: Readout
    output: MaskOutput | None
    memory: MemoryEntry | None


Observer = Callable[[StepTrace], None]


class ClipFeatures:
    """Image features of one clip, computed whenever they are asked for.

    Only decoded and transformed images are kept: those of the context frames and of the latest `window`.
    """

    def __init__(self, model: GLUSModel, frames: FrameSource, context: Sequence[int], window: int) -> None:
        self.model = model
        self.frames = frames
        self.context = list(context)
        self._pixels: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._limit = len(set(context)) + window
        self._frame: tuple[int, np.ndarray] | None = None

    def image(self, index: int) -> np.ndarray:
        """Frame `index`, uint8 (H, W, 3) RGB; the last one asked for is kept."""
        if self._frame is None or self._frame[0] != index:
            self._frame = (index, self.frames[index])
        return self._frame[1]

    def tokens(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), tokens_per_image, H) LLM tokens of the frames."""
        return self.model.encode_clip(torch.stack([self._clip_pixels(index) for index in indices]))

    def _clip_pixels(self, index: int) -> torch.Tensor:
        if index not in self._pixels:
            config = self.model.config
            self._pixels[index] = clip_image(
                self.image(index), config.vision.image_size, config.behaviour.clip_view
            )
            evictable = [i for i in self._pixels if i not in self.context]
            for old in evictable[: max(0, len(self._pixels) - self._limit)]:
                del self._pixels[old]
        else:
            self._pixels.move_to_end(index)
        return self._pixels[index]

    def features(self, index: int) -> FrameFeatures:
        """SAM-2 image features of frame `index`."""
        pixels = sam_image(self.image(index), self.model.config.sam2.image_size, self.model.device)
        return self.model.encode_frame(pixels[None])


class ExpressionPass:
    """One pass of one expression: its dialog window, its memory bank, its position."""

    def __init__(
        self,
        model: GLUSModel,
        tokenizer: GlusTokenizer,
        clip: ClipFeatures,
        query: Query,
        config: InferenceConfig,
        pass_id: int = 0,
        observer: Observer | None = None,
    ) -> None:
        self.model = model
        self.clip = clip
        self.pass_id = pass_id
        self.observer = observer
        self.dialog = open_dialog(model.config, tokenizer, query, config, len(clip.frames))
        self.bank = model.new_bank(config.mem_stride) if config.use_memory else None
        self.window: deque[int] = deque(maxlen=config.query_frames)
        self.position = 0

    @torch.inference_mode()
    def step(self, frame: int) -> FrameResult:
        """Segment the next frame of the pass."""
        self.window.append(frame)
        ids = self.dialog.ids(len(self.window))
        window = [*self.clip.context, *self.window]
        readout = self._read(ids, window)
        output = memory = None
        recalled: list[int] = []
        height, width = self.clip.image(frame).shape[:2]
        mask, score = np.zeros((height, width), dtype=bool), 0.0
        if bool(self.model.accepts(readout)[0]):
            features = self.clip.features(frame)
            recalled = self.bank.recalled_positions(self.position) if self.bank is not None else []
            output = self.model.segment_frame(features, readout.embedding, self.bank, self.position)
            memory = self.model.remember(features, output, self.bank, self.position)
            mask = (upsample_logits(output.low_res, height, width)[0] > 0).cpu().numpy()
            score = float(output.iou[0])
        if self.observer is not None:
            self.observer(StepTrace(frame, ids, window, recalled, readout, output, memory))
        self.position += 1
        return FrameResult(frame, self.pass_id, output is None, mask, score)

    def _read(self, ids: list[int], window: list[int]) -> Readout:
        """The window's last position; both heads are computed for all of them, as in the original."""
        model = self.model
        states = model.states(model.assemble([ids], self.clip.tokens(window)))
        logits = model.language.logits(states, model.config.behaviour.fp32_islands)[:, -1]
        return Readout(lowest_argmax(logits), model.seg_head(states)[:, -1], states[:, -1], logits)


def clip_features(model: GLUSModel, frames: FrameSource, config: InferenceConfig) -> ClipFeatures:
    """The image features of a clip, with its context frames chosen (7.2)."""
    if len(frames) < 1:
        raise InputError("the video has no frames")
    context = context_frames(len(frames), config.context_frames, config.context_choice)
    return ClipFeatures(model, frames, context, config.query_frames)


def segment_expression(
    model: GLUSModel,
    tokenizer: GlusTokenizer,
    frames: FrameSource,
    expression: str,
    config: InferenceConfig,
    key_frame: int = 0,
    observer: Observer | None = None,
) -> Iterator[FrameResult]:
    """Segment every frame of a clip: forward from the key frame, then, if it is not the first, backward.

    Args:
        key_frame: index in the clip; it is decoded in both passes and the backward result counts (7.3).

    Yields:
        Results in processing order; each pass starts with an empty memory bank and dialog.
    """
    clip, query = clip_features(model, frames, config), Query(expression, key_frame)
    for pass_id, order in enumerate(passes(len(frames), key_frame)):
        walk = ExpressionPass(model, tokenizer, clip, query, config, pass_id, observer)
        for frame in order:
            yield walk.step(frame)


def segment_clip(
    model: GLUSModel,
    tokenizer: GlusTokenizer,
    frames: FrameSource,
    queries: Sequence[Query],
    config: InferenceConfig,
) -> Iterator[tuple[int, FrameResult]]:
    """As `engine.segment_clip`, one query after the other."""
    for row, query in enumerate(queries):
        for result in segment_expression(model, tokenizer, frames, query.expression, config, query.key_frame):
            yield row, result
