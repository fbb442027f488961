"""What is asked about a video, in which words, and what comes back; shared by both schedules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glus.config import InferenceConfig, ModelConfig
from glus.errors import InputError
from glus.inference.selection import passes
from glus.text.prompts import clean_expression, window_prompt
from glus.text.tokenizer import GlusTokenizer


@dataclass(frozen=True)
class Query:
    """An expression, and the frame to start from: forward, then, if it is not the first, backward (7.3)."""

    expression: str
    key_frame: int = 0


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


class Dialog:
    """The prompts of one expression; what they say depends on no prediction (reference glus.md 3.3, 10).

    Attributes:
        expression: the text as it is asked for.
    """

    def __init__(
        self, model: ModelConfig, tokenizer: GlusTokenizer, expression: str, config: InferenceConfig
    ) -> None:
        self.expression = clean_expression(expression) if model.behaviour.strip_period else expression
        self._model = model
        self._tokenizer = tokenizer
        self._config = config
        self._ids: dict[int, list[int]] = {}

    def ids(self, rounds: int) -> list[int]:
        """Token ids of a window of `rounds` questions; failed rounds tokenize as successful ones (3.3).

        Raises:
            InputError: the prompt is longer than the language model's positions (D25).
        """
        if rounds not in self._ids:
            behaviour, config = self._model.behaviour, self._config
            prompt = window_prompt(
                self.expression,
                rounds,
                config.context_frames,
                question=config.question,
                trailing_space=behaviour.answer_trailing_space,
                lower=behaviour.lower_case,
            )
            ids = self._tokenizer.encode_with_images(prompt)
            limit = self._model.language.max_positions
            per_image = self._model.vision.tokens_per_image
            length = len(ids) + (config.context_frames + rounds) * (per_image - 1)
            if length > limit:
                raise InputError(
                    f"the expression is too long: with {rounds} query frames its prompt takes {length} positions "
                    f"of {limit}; shorten it or lower context_frames / query_frames"
                )
            self._ids[rounds] = ids
        return self._ids[rounds]


def open_dialog(
    model: ModelConfig, tokenizer: GlusTokenizer, query: Query, config: InferenceConfig, count: int | None
) -> Dialog:
    """The dialog of a query of a clip of `count` frames (None: nobody knows), checked before any work.

    Raises:
        InputError: no frames, a key frame outside the clip, or an expression too long for the longest window.
    """
    dialog = Dialog(model, tokenizer, query.expression, config)
    longest = config.query_frames
    if count is not None:
        if count < 1:
            raise InputError("the video has no frames")
        if not 0 <= query.key_frame < count:
            raise InputError(f"key frame {query.key_frame} is not among {count} frames")
        longest = min(longest, max(map(len, passes(count, query.key_frame))))
    dialog.ids(longest)
    return dialog
