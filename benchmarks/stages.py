"""What each part of the model takes: seconds, and the operations and bytes that bound them from below."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from machine import Clock
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from glus.modeling.glus import GLUSModel

Around = Callable[[str, nn.Module, Callable[..., Any]], Callable[..., Any]]


@dataclasses.dataclass
class Need:
    """Work that cannot be avoided by doing it faster.

    Attributes:
        operations: floating-point ones, of matrix products, convolutions and attention.
        bytes: weights, once per call, arguments and results.
    """

    operations: float = 0.0
    bytes: float = 0.0

    def __mul__(self, times: float) -> Need:
        return Need(self.operations * times, self.bytes * times)


def parts_of(model: GLUSModel) -> dict[str, list[tuple[Any, str, nn.Module]]]:
    """Part -> methods that do its work: their owner, their name, the module whose weights they read."""
    language, sam = model.language, model.sam
    return {
        "clip": [(model, "encode_clip", model.vision)],
        "language model": [
            (model, "states", language.decoder.layers),
            (language, "begin", language.decoder.layers),
            (language, "read", language.decoder.layers),
        ],
        "heads": [(language, "logits", language.lm_head), (model.seg_head, "forward", model.seg_head)],
        "sam-2 image encoder": [(model, "encode_frame", sam.image_encoder)],
        "memory attention": [(sam, "condition", sam.memory_attention)],
        "mask decoder": [(sam, "decode", sam.sam_mask_decoder)],
        "memory encoder": [(sam, "encode_memory", sam.memory_encoder)],
    }


@contextlib.contextmanager
def wrapped(model: GLUSModel, around: Around) -> Iterator[None]:
    """Put `around(part, weights, method)` in the place of the parts' methods."""
    places = [(part, *place) for part, methods in parts_of(model).items() for place in methods]
    for part, owner, method, weights in places:
        owner.__dict__[method] = around(part, weights, getattr(owner, method))
    try:
        yield
    finally:
        for _, owner, method, _ in places:
            del owner.__dict__[method]


@contextlib.contextmanager
def timed(model: GLUSModel, clock: Clock) -> Iterator[dict[str, float]]:
    """Seconds of each part within the block."""
    seen = dict.fromkeys(parts_of(model), 0.0)

    def around(part: str, _: nn.Module, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return work(*args, **kwargs)
            finally:
                seen[part] += clock() - start

        return run

    with wrapped(model, around):
        yield seen


def needs(model: GLUSModel, work: Callable[[], Any]) -> dict[str, Need]:
    """What each part needs for `work`, and what all of it does (`everything`)."""
    seen = {part: Need() for part in [*parts_of(model), "everything"]}
    sizes: dict[int, int] = {}

    def around(part: str, weights: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
        sizes[id(weights)] = sum(parameter.nbytes for parameter in weights.parameters())

        def run(*args: Any, **kwargs: Any) -> Any:
            before = counter.get_total_flops()
            result = method(*args, **kwargs)
            seen[part].operations += counter.get_total_flops() - before
            seen[part].bytes += sizes[id(weights)] + _bytes((args, list(kwargs.values()), result))
            return result

        return run

    with FlopCounterMode(display=False) as counter, wrapped(model, around):
        work()
    total = seen["everything"]
    total.operations = counter.get_total_flops()
    total.bytes = sum(need.bytes for need in seen.values())
    return seen


def _bytes(thing: Any) -> int:
    """Of all tensors in it."""
    if isinstance(thing, torch.Tensor):
        return thing.nbytes
    if dataclasses.is_dataclass(thing):
        return _bytes(list(vars(thing).values()))
    return sum(map(_bytes, thing)) if isinstance(thing, list | tuple) else 0
