"""Frame by frame: a video, or frames as they come, whose end nobody needs to know."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch

from glus.config import InferenceConfig
from glus.errors import InputError
from glus.inference.budget import MemoryBudget
from glus.inference.engine import Engine, segment_clip
from glus.inference.queries import FrameResult, Query, open_dialog
from glus.inference.streams import ContextPolicy, RunningContext, checked, given
from glus.inference.windows import WindowReader
from glus.modeling.glus import GLUSModel
from glus.text.tokenizer import GlusTokenizer
from glus.video import Frame, FrameSource


def stream(
    model: GLUSModel,
    tokenizer: GlusTokenizer,
    frames: FrameSource | Iterable[Frame],
    expressions: Sequence[str],
    config: InferenceConfig,
    *,
    context: ContextPolicy | Sequence[Frame] = "reservoir",
    lookahead: int = 1,
    budget: MemoryBudget | None = None,
) -> Iterator[list[FrameResult]]:
    """Segment frame by frame for several expressions; memory stays bounded whatever the length.

    Args:
        frames: a video, or frames as they come: an iterator, read once, whose end nobody needs to know.
        context: of an iterator, where its context frames come from; see `streams`. Those of a video are set (7.2).
        lookahead: of an iterator, how many frames are read before the first of them is answered.

    Yields:
        One list per frame: the result of each expression, in the order given.
    """
    queries = [Query(text) for text in expressions]
    if isinstance(frames, Iterator):
        found = _live(model, tokenizer, frames, queries, config, context, lookahead, budget)
    else:
        found = segment_clip(model, tokenizer, cast(FrameSource, frames), queries, config, budget=budget)
    results: list[FrameResult] = []
    for _, result in found:
        results.append(result)
        if len(results) == len(queries):
            yield results
            results = []


def _live(
    model: GLUSModel,
    tokenizer: GlusTokenizer,
    frames: Iterator[Frame],
    queries: Sequence[Query],
    config: InferenceConfig,
    context: ContextPolicy | Sequence[Frame],
    lookahead: int,
    budget: MemoryBudget | None,
) -> Iterator[tuple[int, FrameResult]]:
    """One forward pass over frames as they come."""
    dialogs = [open_dialog(model.config, tokenizer, query, config, None) for query in queries]
    if lookahead < 1:
        raise InputError(f"lookahead must be at least 1, found {lookahead}")
    shown = given(context, config.context_frames) if not isinstance(context, str) else []
    running = RunningContext(config.context_frames, context) if isinstance(context, str) else None
    good = checked(frames)
    first = next(good, None)
    if first is None or not queries:
        return
    engine = Engine(model, config, dialogs, config.query_frames, (first.shape[0], first.shape[1]), budget)
    current: WindowReader | None = None
    if running is None or not config.context_frames:
        engine.keep([engine.prepare(-1 - i, image) for i, image in enumerate(shown)])
        current = engine.reader(engine.context([-1 - i for i in range(len(shown))]))

    def reader(tokens: torch.Tensor) -> WindowReader:
        nonlocal current
        if running is not None and config.context_frames and (running.offer(tokens) or current is None):
            current = engine.reader(running.tokens())
        assert current is not None
        return current

    prepared = (engine.prepare(i, image) for i, image in enumerate(itertools.chain([first], good)))
    yield from engine.sweep(engine.chunks(prepared, lookahead), engine.walks(queries, 1), reader, None)
