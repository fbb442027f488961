"""The plain schedule: one window at a time, frame by frame, as reference glus.md 7.4 describes a pass.

`ExpressionPass.step` is one frame of one expression; `segment_expression` walks a clip by it, `stream` walks
several expressions in lockstep. Image work (decoding, transforms, CLIP tokens, SAM-2 features) lives in
`ClipFeatures` and is done once per frame for all who share the object. A faster schedule may replace this file;
the primitives it composes are those of `glus.modeling.glus`.
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
from glus.inference.selection import context_frames, passes
from glus.modeling.glus import GLUSModel, Readout
from glus.modeling.mask_decoder import FrameFeatures, MaskOutput, upsample_logits
from glus.modeling.memory import MemoryEntry
from glus.text.prompts import clean_expression, window_prompt
from glus.text.tokenizer import GlusTokenizer
from glus.video import FrameSource


@dataclass(frozen=True)
class FrameResult:
    """The mask of one frame for one expression.

    Attributes:
        frame: index in the clip.
        pass_id: 0 forward, 1 backward; a later result of the same frame replaces an earlier one.
        failed: the model did not answer [SEG]; the mask is then blank and nothing was remembered (D10).
        mask: bool (height, width) in the frame's own size.
        score: the decoder's predicted IoU, 0..1; 0 for a failed frame.
    """

    frame: int
    pass_id: int
    failed: bool
    mask: np.ndarray
    score: float


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
    """Image features of one clip, shared by its expressions.

    CLIP tokens of the context frames are kept; of the others only the latest `window`, so memory does not grow
    with the clip. SAM-2 features are kept for one frame at a time.
    """

    def __init__(self, model: GLUSModel, frames: FrameSource, context: Sequence[int], window: int) -> None:
        self.model = model
        self.frames = frames
        self.context = list(context)
        self._tokens: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._limit = len(set(context)) + window
        self._frame: tuple[int, np.ndarray] | None = None
        self._features: tuple[int, FrameFeatures] | None = None

    def image(self, index: int) -> np.ndarray:
        """Frame `index`, uint8 (H, W, 3) RGB; the last one asked for is kept."""
        if self._frame is None or self._frame[0] != index:
            self._frame = (index, self.frames[index])
        return self._frame[1]

    def tokens(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), tokens_per_image, H) LLM tokens of the frames."""
        return torch.stack([self._token(index) for index in indices])

    def _token(self, index: int) -> torch.Tensor:
        if index not in self._tokens:
            config = self.model.config
            pixels = clip_image(self.image(index), config.vision.image_size, config.behaviour.clip_view)
            self._tokens[index] = self.model.encode_clip(pixels[None])[0]
            evictable = [i for i in self._tokens if i not in self.context]
            for old in evictable[: max(0, len(self._tokens) - self._limit)]:
                del self._tokens[old]
        else:
            self._tokens.move_to_end(index)
        return self._tokens[index]

    def features(self, index: int) -> FrameFeatures:
        """SAM-2 image features of frame `index`."""
        if self._features is None or self._features[0] != index:
            pixels = sam_image(self.image(index), self.model.config.sam2.image_size, self.model.device)
            self._features = (index, self.model.encode_frame(pixels[None]))
        return self._features[1]


class ExpressionPass:
    """One pass of one expression: its dialog window, its memory bank, its position."""

    def __init__(
        self,
        model: GLUSModel,
        tokenizer: GlusTokenizer,
        clip: ClipFeatures,
        expression: str,
        config: InferenceConfig,
        pass_id: int = 0,
        observer: Observer | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.clip = clip
        self.config = config
        self.pass_id = pass_id
        self.observer = observer
        behaviour = model.config.behaviour
        self.expression = clean_expression(expression) if behaviour.strip_period else expression
        self.bank = model.new_bank(config.mem_stride) if config.use_memory else None
        self.window: deque[int] = deque(maxlen=config.query_frames)
        self.position = 0
        self._ids: dict[int, list[int]] = {}
        self.window_ids(min(config.query_frames, len(clip.frames)))  # too long an expression fails before any work

    def window_ids(self, rounds: int) -> list[int]:
        """Token ids of a window of `rounds` questions; failed rounds tokenize as successful ones (3.3)."""
        if rounds not in self._ids:
            behaviour = self.model.config.behaviour
            prompt = window_prompt(
                self.expression,
                rounds,
                len(self.clip.context),
                question=self.config.question,
                trailing_space=behaviour.answer_trailing_space,
                lower=behaviour.lower_case,
            )
            ids = self.tokenizer.encode_with_images(prompt)
            limit = self.model.config.language.max_positions
            per_image = self.model.config.vision.tokens_per_image
            length = len(ids) + (len(self.clip.context) + rounds) * (per_image - 1)
            if length > limit:
                raise InputError(
                    f"the expression is too long: with {rounds} query frames its prompt takes {length} positions "
                    f"of {limit}; shorten it or lower context_frames / query_frames"
                )
            self._ids[rounds] = ids
        return self._ids[rounds]

    @torch.inference_mode()
    def step(self, frame: int) -> FrameResult:
        """Segment the next frame of the pass."""
        self.window.append(frame)
        ids = self.window_ids(len(self.window))
        window = [*self.clip.context, *self.window]
        readout = self.model.read_window([ids], self.clip.tokens(window))
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


def clip_features(model: GLUSModel, frames: FrameSource, config: InferenceConfig) -> ClipFeatures:
    """The shared image features of a clip, with its context frames chosen (7.2)."""
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
    clip: ClipFeatures | None = None,
    observer: Observer | None = None,
) -> Iterator[FrameResult]:
    """Segment every frame of a clip: forward from the key frame, then, if it is not the first, backward.

    Args:
        key_frame: index in the clip; it is decoded in both passes and the backward result counts (7.3).
        clip: features to share with other expressions of the clip.

    Yields:
        Results in processing order; each pass starts with an empty memory bank and dialog.
    """
    clip = clip or clip_features(model, frames, config)
    for pass_id, order in enumerate(passes(len(frames), key_frame)):
        walk = ExpressionPass(model, tokenizer, clip, expression, config, pass_id, observer)
        for frame in order:
            yield walk.step(frame)


def stream(
    model: GLUSModel,
    tokenizer: GlusTokenizer,
    frames: FrameSource,
    expressions: Sequence[str],
    config: InferenceConfig,
) -> Iterator[list[FrameResult]]:
    """Segment a clip frame by frame for several expressions; memory stays bounded whatever the length.

    Yields:
        One list per frame: the result of each expression, in the order given.
    """
    clip = clip_features(model, frames, config)
    walks = [ExpressionPass(model, tokenizer, clip, text, config) for text in expressions]
    for frame in range(len(frames)):
        yield [walk.step(frame) for walk in walks]
