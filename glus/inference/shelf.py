"""Frames that both passes of a video look at: seen once, as far as memory allows.

Expressions with key frames are walked forward, then backward, and the frames between the first and the last key
frame are met in both directions. Forward passes need them in ascending order, backward passes in descending order;
so whoever wants to see each once must hold all of them in between. What fits into a share of the memory is held
here from the first look to the second; the rest is seen twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from dataclasses import dataclass

import torch

from glus.modeling.mask_decoder import FrameFeatures


@dataclass(frozen=True)
class Seen:
    """What is held of a frame.

    Attributes:
        size: height and width.
        tokens: (tokens_per_image, H) for the language model.
        features: SAM-2's; None where none were made, or no room was left.
    """

    size: tuple[int, int]
    tokens: torch.Tensor
    features: FrameFeatures | None = None


class Shelf:
    """Holds frames between their two passes.

    Args:
        frames: met in both.
        tokens: of how many of them tokens may be held.
        features: of how many of these the much larger features, too.
    """

    def __init__(self, frames: Container[int], tokens: int, features: int) -> None:
        self._frames = frames
        self._tokens, self._features = tokens, features
        self._seen: dict[int, Seen] = {}
        self._position: torch.Tensor | None = None

    def __getitem__(self, index: int) -> Seen | None:
        """What is held of frame `index`."""
        return self._seen.get(index)

    def put_tokens(self, index: int, size: tuple[int, int], tokens: torch.Tensor) -> None:
        """Hold a copy, if the frame comes again and there is room."""
        if index in self._frames and self._tokens > 0:
            self._tokens -= 1
            self._seen[index] = Seen(size, tokens.clone())

    def put_features(self, index: int, features: FrameFeatures) -> None:
        """Hold a copy beside the tokens, if those are held and there is room."""
        if index in self._seen and self._features > 0:
            self._features -= 1
            self._position = features.position.clone() if self._position is None else self._position
            held = features.alone(self._position)
            self._seen[index] = dataclasses.replace(self._seen[index], features=held)

    def drop(self, index: int) -> None:
        """Frame `index` does not come again."""
        self._seen.pop(index, None)
