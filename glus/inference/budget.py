"""How much is done at once: by a budget of memory, and by half as much where memory runs out all the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from glus.config import LanguageConfig, ModelConfig, VisionConfig
from glus.errors import InputError
from glus.modeling.glus import GLUSModel
from glus.out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)

Thing = TypeVar("Thing")
Result = TypeVar("Result")

GIB = 1 << 30
SHARE_OF_FREE = {"cuda": 0.8, "cpu": 0.4}
"""Of the free memory: on a CPU others use it, too."""
POSITIONS_AT_ONCE = {"cuda": 16384, "cpu": 8192}
"""Of the language model; larger chunks are no faster."""
FRAMES_AT_ONCE = 8
SHARE_OF_HELD = 0.25
"""Of the budget, for frames that a backward pass will meet again."""
ROWS_AT_ONCE = 64
REMEDY = "use a lower --precision, a lower --question_frame_num or a smaller --image_size"


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that the engine may use beside the model."""

    bytes: int

    def holds(self, each: int) -> int:
        """How many things of `each` bytes fit; one always counts as fitting."""
        return max(1, self.bytes // max(1, each))

    @staticmethod
    def of_gib(gib: float) -> MemoryBudget:
        """Raises an `InputError` unless positive."""
        if not gib > 0:
            raise InputError(f"memory_budget must be above 0 GiB, found {gib}")
        return MemoryBudget(int(gib * GIB))

    @staticmethod
    def of_free_memory(device: torch.device) -> MemoryBudget:
        """A share of what is free now."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            # what torch holds and does not use is free, too
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        else:
            free = free_host_memory()
        return MemoryBudget(int(free * SHARE_OF_FREE.get(device.type, SHARE_OF_FREE["cpu"])))


def free_host_memory() -> int:
    """Bytes available to new programs; where the system does not say, its free pages, else 4 GiB."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 4 * GIB


@dataclass(frozen=True)
class Plan:
    """How much is done at once.

    Attributes:
        frames: looked at ahead; their CLIP tokens, SAM-2 features and finished masks exist together.
        windows: read by the language model.
        rows: sequences (expressions) decoded.
        tokens: of how many frames CLIP tokens are held from the forward pass for the backward pass.
        features: of how many of these SAM-2's features, too.
    """

    frames: int
    windows: int
    rows: int
    tokens: int
    features: int


def plan(
    model: GLUSModel, budget: MemoryBudget, expressions: int, longest: int, own: int, pixels: int, twice: int
) -> Plan:
    """Chunk sizes for `expressions` sequences; each part may use the whole budget, since they take turns.

    Args:
        longest: positions of the longest window.
        own: of these, the ones behind the context frames, which all windows share.
        pixels: of a frame.
        twice: frames that are met in two passes.
    """
    item = model.dtype.itemsize
    per_tokens = item * model.config.vision.tokens_per_image * model.config.language.hidden_size
    per_features = item * feature_numbers(model.config)
    share = int(SHARE_OF_HELD * budget.bytes)
    tokens = min(twice, share // per_tokens)
    features = min(tokens, (share - tokens * per_tokens) // per_features)
    budget = MemoryBudget(budget.bytes - tokens * per_tokens - features * per_features)
    per_window = item * window_numbers(model.config.language, longest)
    per_row = item * row_numbers(model.config) + 10 * pixels
    per_frame = item * frame_numbers(model.config) + 2 * expressions * pixels
    at_once = POSITIONS_AT_ONCE.get(model.device.type, POSITIONS_AT_ONCE["cpu"])
    windows = min(budget.holds(per_window), max(1, at_once // own))
    frames = min(budget.holds(4 * per_frame), FRAMES_AT_ONCE, max(1, windows // max(1, expressions)))
    return Plan(frames, windows, min(budget.holds(per_row), ROWS_AT_ONCE), tokens, features)


def window_numbers(language: LanguageConfig, longest: int) -> int:
    """Numbers held while the language model reads a window: a layer's activations, the keys and values that it
    sees joined, and those of its beginning in all layers."""
    layer = longest * (8 * language.hidden_size + 3 * language.intermediate_size + 6 * language.hidden_size)
    return layer + 2 * language.num_layers * language.hidden_size * longest


def row_numbers(c: ModelConfig) -> int:
    """Numbers held while a frame is decoded for one sequence: memory attention, decoder, memory encoder."""
    sam = c.sam2
    cells = sam.embed_size**2
    attention = cells * (sam.memory_slots * (2 * sam.memory_dim + 4 * sam.hidden_size) + 12 * sam.hidden_size)
    layers = cells * (sam.memory_ffn + sam.decoder_ffn) + 16 * cells * sam.hidden_size
    return attention + layers + 8 * sam.image_size**2


def frame_numbers(c: ModelConfig) -> int:
    """Numbers held for a frame: its inputs, its features, and what making them takes at a time."""
    sam = c.sam2
    encoder = (sam.image_size // 4) ** 2 * sam.trunk_dim * 12
    return feature_numbers(c) + encoder + 3 * sam.image_size**2 + clip_numbers(c.vision)


def feature_numbers(c: ModelConfig) -> int:
    """Numbers of a frame's SAM-2 features: two finer maps, the coarsest, its position code."""
    return c.sam2.embed_size**2 * c.sam2.hidden_size * (2 + 1 + 1 + 1)


def clip_numbers(vision: VisionConfig) -> int:
    """Numbers held while a frame goes through CLIP."""
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches * (8 * vision.hidden_size + vision.intermediate_size)


class Ration:
    """Hands out work in portions; a portion that memory does not suffice for is halved, for good.

    Args:
        what: what is handed out, for messages.
        size: the first portions.
        remedy: what takes less memory, for the message when nothing helps.
    """

    def __init__(self, what: str, size: int, remedy: str = REMEDY) -> None:
        self.what = what
        self.remedy = remedy
        self.size = max(1, size)

    def run(self, things: Sequence[Thing], work: Callable[[Sequence[Thing]], Result]) -> list[Result]:
        """`work` on portions of `things`, in order; it must change nothing, since it may be tried again.

        Raises:
            RuntimeError: memory does not suffice for a single one.
        """
        done: list[Result] = []
        at = 0
        while at < len(things):
            portion = things[at : at + self.size]
            result = self._attempt(portion, work)
            if result is None:
                self._shrink(len(portion))
                continue
            done.append(result[0])
            at += len(portion)
        return done

    def _attempt(
        self, portion: Sequence[Thing], work: Callable[[Sequence[Thing]], Result]
    ) -> tuple[Result] | None:
        """The result in a tuple, or None where memory ran out: outside, nothing refers to what was tried."""
        try:
            return (work(portion),)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(portion) == 1:
                raise type(error)(
                    f"out of memory with one {self.what} at a time, there is no less to do at once; free memory, "
                    f"{self.remedy} ({error})"
                ) from error
        return None

    def _shrink(self, tried: int) -> None:
        self.size = tried // 2
        logger.warning("out of memory with %d %ss at once; going on with %d", tried, self.what, self.size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
