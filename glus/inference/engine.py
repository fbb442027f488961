"""The engine: frame by frame, all expressions of a video at once, no work twice (reference glus.md 10).

Per frame, once: decoding, both transforms, CLIP tokens, SAM-2 features (with key frames see `shelf`). Windows of a
chunk of frames are read together (`windows`), since no prompt depends on a mask; then masks are decoded frame by
frame, all sequences at once (`sequences`). What is kept does not grow with the video: the context frames, the
tokens of the last query frames, and each sequence's memory bank. Masks equal those of the `reference` schedule up
to rounding.

The host waits for the device twice per chunk of frames: for which windows were answered, and for the masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from glus.config import InferenceConfig
from glus.data.transforms import clip_image, sam_image, upload
from glus.inference.budget import MemoryBudget, Plan, Ration, plan
from glus.inference.prefetch import ReadAhead
from glus.inference.queries import Dialog, FrameResult, Query, open_dialog
from glus.inference.selection import context_frames
from glus.inference.sequences import Decoded, Walk, decode
from glus.inference.shelf import Shelf
from glus.inference.windows import WindowReader
from glus.modeling.glus import GLUSModel, Readout
from glus.modeling.mask_decoder import FrameFeatures, upsample_logits
from glus.modeling.memory import MemoryBank
from glus.text.tokenizer import IMAGE_INDEX, GlusTokenizer
from glus.video import Frame, FrameSource


@dataclass(frozen=True)
class Prepared:
    """A frame, decoded and transformed, both on the device; None what is not needed.

    Attributes:
        index: in the video.
        size: height and width.
        clip: (3, S, S) CLIP pixels.
        sam: (3, S', S') SAM-2 pixels.
    """

    index: int
    size: tuple[int, int]
    clip: torch.Tensor | None = None
    sam: torch.Tensor | None = None


ReaderOf = Callable[[torch.Tensor], WindowReader]
"""The reader for windows about a frame, from the frame's tokens."""


@dataclass(frozen=True)
class _Pending:
    """Results of a frame on their way to the host: masks (E, height, width) and scores of `walks`."""

    frame: Prepared
    walks: Sequence[Walk]
    masks: torch.Tensor
    scores: torch.Tensor


class Engine:
    """Segments one video.

    Args:
        dialogs: all that will be asked.
        rounds: frames of the longest window.
        size: height and width of the frames.
        twice: frames that both passes meet.
    """

    def __init__(
        self,
        model: GLUSModel,
        config: InferenceConfig,
        dialogs: Sequence[Dialog],
        rounds: int,
        size: tuple[int, int],
        budget: MemoryBudget | None,
        twice: range = range(0),
    ) -> None:
        self.model = model
        self.config = config
        self.dialogs = dialogs
        self.rounds = rounds
        per_image = model.config.vision.tokens_per_image
        text = max(len(dialog.ids(rounds)) for dialog in dialogs)
        before = dialogs[0].ids(1).index(IMAGE_INDEX) + per_image * config.context_frames
        longest = text + per_image * (config.context_frames + rounds)
        budget = budget or MemoryBudget.of_free_memory(model.device)
        pixels = size[0] * size[1]
        self.plan: Plan = plan(model, budget, len(dialogs), longest, longest - before, pixels, len(twice))
        self._shelf = Shelf(twice, self.plan.tokens, self.plan.features)
        self._frames = Ration("frame", self.plan.frames)
        self._windows = Ration("window", self.plan.windows)
        self._rows = Ration("expression", self.plan.rows)
        self._tokens: dict[int, torch.Tensor] = {}
        self._kept: dict[int, torch.Tensor] = {}

    def prepare(self, index: int, image: Frame) -> Prepared:
        """Transform a frame, as far as what it is for is not at hand."""
        config, device = self.model.config, self.model.device
        clip = None
        if self._shelf[index] is None:
            clip = upload(clip_image(image, config.vision.image_size, config.behaviour.clip_view), device)
        sam = sam_image(image, config.sam2.image_size, device)
        return Prepared(index, (image.shape[0], image.shape[1]), clip, sam)

    def held(self, index: int) -> Prepared | None:
        """A frame that need not even be decoded: all that it is for is at hand."""
        seen = self._shelf[index]
        return Prepared(index, seen.size) if seen is not None and seen.features is not None else None

    def walks(self, queries: Sequence[Query], step: int) -> list[Walk]:
        """The forward passes of all queries (`step` 1), or the backward passes of those that have one (-1)."""
        return [
            Walk(row, dialog, query.key_frame, step, self._bank())
            for row, (query, dialog) in enumerate(zip(queries, self.dialogs, strict=True))
            if step > 0 or query.key_frame > 0
        ]

    def _bank(self) -> MemoryBank | None:
        return self.model.new_bank(self.config.mem_stride) if self.config.use_memory else None

    @torch.inference_mode()
    def reader(self, context: torch.Tensor) -> WindowReader:
        """For windows behind context frames (context frames, tokens_per_image, H)."""
        return WindowReader(self.model, self.dialogs, self.rounds, context)

    @torch.inference_mode()
    def keep(self, frames: Sequence[Prepared]) -> None:
        """Encode frames whose tokens stay: those of the context."""
        self._kept = self._encode(frames)

    def context(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), tokens_per_image, H) of frames that were kept."""
        shape = (0, self.model.config.vision.tokens_per_image, self.model.config.language.hidden_size)
        if not indices:
            return torch.zeros(shape, dtype=self.model.dtype, device=self.model.device)
        return torch.stack([self._kept[index] for index in indices])

    def sweep(
        self, chunks: Iterator[list[Prepared]], walks: Sequence[Walk], reader: ReaderOf, last: int | None
    ) -> Iterator[tuple[int, FrameResult]]:
        """Run passes of one direction over frames in its order.

        Args:
            reader: asked for each frame in order.
            last: frame that no other follows, which need not be remembered.

        Yields:
            Number of the query and result, frame by frame, in each the queries in order.
        """
        self._tokens = {}
        for chunk in chunks:
            yield from self._chunk(chunk, walks, reader, last)

    def chunks(self, frames: Iterator[Prepared], size: int | None = None) -> Iterator[list[Prepared]]:
        """Cut frames into what is looked at ahead; `size` at most, by default what the budget allows."""
        size = min(size or self.plan.frames, self.plan.frames)
        chunk: list[Prepared] = []
        for frame in frames:
            chunk.append(frame)
            if len(chunk) >= size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    @torch.inference_mode()
    def _chunk(
        self, chunk: Sequence[Prepared], walks: Sequence[Walk], reader: ReaderOf, last: int | None
    ) -> list[tuple[int, FrameResult]]:
        recent = list(self._tokens.items())[-(self.rounds - 1) :] if self.rounds > 1 else []
        forward = walks[0].step > 0
        self._tokens = dict(recent) | self._tokens_of(chunk, forward)
        asked = [(frame, walk) for frame in chunk for walk in walks if walk.position(frame.index) >= 0]
        readers = {frame.index: reader(self._tokens[frame.index]) for frame in chunk}
        prompts, answered = self._read(asked, readers)
        active: dict[int, list[tuple[Walk, torch.Tensor]]] = {}
        silent: dict[int, list[Walk]] = {}
        for (frame, walk), prompt, ok in zip(asked, prompts, answered, strict=True):
            if ok:
                active.setdefault(frame.index, []).append((walk, prompt))
            else:
                silent.setdefault(frame.index, []).append(walk)
        features = self._features([frame for frame in chunk if frame.index in active], forward)
        pending = []
        for frame in chunk:
            if frame.index in active:
                remember = self.config.use_memory and frame.index != last
                pending.append(self._decode(frame, features.pop(frame.index), active[frame.index], remember))
            for walk in silent.get(frame.index, []):
                walk.remember(frame.index, None)
            if not forward:
                self._shelf.drop(frame.index)
        found = self._collect(pending)
        return [(walk.row, found.get((frame.index, walk.row)) or _failed(frame, walk)) for frame, walk in asked]

    def _tokens_of(self, chunk: Sequence[Prepared], forward: bool) -> dict[int, torch.Tensor]:
        """CLIP tokens of frames, each (tokens_per_image, H), in their order; made unless they are at hand."""
        tokens = {**self._kept}
        for frame in chunk:
            if (seen := self._shelf[frame.index]) is not None:
                tokens[frame.index] = seen.tokens
        tokens |= self._encode([frame for frame in chunk if frame.index not in tokens])
        if forward:
            for frame in chunk:
                self._shelf.put_tokens(frame.index, frame.size, tokens[frame.index])
        return {frame.index: tokens[frame.index] for frame in chunk}

    def _encode(self, frames: Sequence[Prepared]) -> dict[int, torch.Tensor]:
        """CLIP tokens of frames, each (tokens_per_image, H)."""

        def encode(part: Sequence[Prepared]) -> torch.Tensor:
            return self.model.encode_clip(torch.stack([_made(frame.clip) for frame in part]))

        tokens = [one for part in self._frames.run(frames, encode) for one in part]
        return {frame.index: one for frame, one in zip(frames, tokens, strict=True)}

    def _read(
        self, asked: Sequence[tuple[Prepared, Walk]], readers: Mapping[int, WindowReader]
    ) -> tuple[list[torch.Tensor], list[bool]]:
        """(1, out_dim) [SEG] embedding of each window, and whether the model answered it."""
        if not asked:
            return [], []
        readouts: list[Readout] = []
        for reader, group in itertools.groupby(asked, lambda one: readers[one[0].index]):
            windows = [walk.window(frame.index, self.config.query_frames) for frame, walk in group]
            readouts += self._windows.run(windows, partial(reader.read, tokens=self._tokens))
        answered: list[bool] = torch.cat([self.model.accepts(one) for one in readouts]).tolist()
        return list(torch.cat([one.embedding for one in readouts]).split(1)), answered

    def _features(self, frames: Sequence[Prepared], forward: bool) -> dict[int, FrameFeatures]:
        """SAM-2 features of frames, made unless they are at hand."""

        def encode(part: Sequence[Prepared]) -> list[FrameFeatures]:
            return self.model.encode_frame(torch.stack([_made(frame.sam) for frame in part])).split()

        features = {}
        for frame in frames:
            if (seen := self._shelf[frame.index]) is not None and seen.features is not None:
                features[frame.index] = seen.features
        fresh = [frame for frame in frames if frame.index not in features]
        made = [one for part in self._frames.run(fresh, encode) for one in part]
        for frame, one in zip(fresh, made, strict=True):
            features[frame.index] = one
            if forward:
                self._shelf.put_features(frame.index, one)
        return features

    def _decode(
        self,
        frame: Prepared,
        features: FrameFeatures,
        active: Sequence[tuple[Walk, torch.Tensor]],
        remember: bool,
    ) -> _Pending:
        """Memory read, decode, memory write of one frame for the sequences that answered."""

        def run(part: Sequence[tuple[Walk, torch.Tensor]]) -> tuple[Decoded, torch.Tensor]:
            prompts = torch.cat([prompt for _, prompt in part])
            recalls = [walk.recall(frame.index) for walk, _ in part]
            done = decode(self.model, features, prompts, recalls, remember)
            return done, upsample_logits(done.output.low_res, *frame.size) > 0

        parts = self._rows.run(active, run)
        entries = [entry for done, _ in parts for entry in done.memories]
        for (walk, _), entry in zip(active, entries, strict=False):  # no entries where nothing is remembered
            walk.remember(frame.index, entry)
        masks, scores = torch.cat([masks for _, masks in parts]), torch.cat([d.output.iou for d, _ in parts])
        return _Pending(frame, [walk for walk, _ in active], _to_host(masks), _to_host(scores.float()))

    def _collect(self, pending: Sequence[_Pending]) -> dict[tuple[int, int], FrameResult]:
        """Wait for results; by frame and query."""
        if self.model.device.type == "cuda":
            torch.cuda.current_stream(self.model.device).synchronize()
        return {
            (one.frame.index, walk.row): FrameResult(one.frame.index, walk.pass_id, False, mask, score)
            for one in pending
            for walk, mask, score in zip(one.walks, one.masks.numpy(), one.scores.tolist(), strict=True)
        }


def _made(pixels: torch.Tensor | None) -> torch.Tensor:
    assert pixels is not None  # only of frames whose results are at hand, which nobody asks for
    return pixels


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """On its way to the host, without waiting for it."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _failed(frame: Prepared, walk: Walk) -> FrameResult:
    return FrameResult(frame.index, walk.pass_id, True, np.zeros(frame.size, dtype=bool), 0.0)


def segment_clip(
    model: GLUSModel,
    tokenizer: GlusTokenizer,
    frames: FrameSource,
    queries: Sequence[Query],
    config: InferenceConfig,
    *,
    budget: MemoryBudget | None = None,
) -> Iterator[tuple[int, FrameResult]]:
    """Segment every frame of a clip by any number of queries.

    Args:
        budget: memory to use beside the model; default a share of what is free.

    Yields:
        Number of the query and a result. Those of one query come in the order of the reference schedule: forward
        from its key frame, then, if that is not the first frame, backward, where the later result of a frame
        counts (7.3).

    Raises:
        InputError: no frames, or a query that cannot be asked; before any work.
    """
    count = len(frames)
    dialogs = [open_dialog(model.config, tokenizer, query, config, count) for query in queries]
    if not queries:
        return
    context = context_frames(count, config.context_frames, config.context_choice)
    images = {index: frames[index] for index in sorted({*context} or {0})}
    size = next(iter(images.values())).shape
    keys = [query.key_frame for query in queries]
    twice = range(min(keys), max(keys) + 1) if any(keys) else range(0)
    rounds = min(config.query_frames, count)
    engine = Engine(model, config, dialogs, rounds, (size[0], size[1]), budget, twice)
    ready = {index: engine.prepare(index, image) for index, image in images.items()}
    engine.keep(list(ready.values()))
    reader = engine.reader(engine.context(context))

    def prepare(index: int) -> Prepared:
        return ready.get(index) or engine.held(index) or engine.prepare(index, frames[index])

    for step, order in ((1, range(min(keys), count)), (-1, range(max(keys), -1, -1))):
        walks = engine.walks(queries, step)
        if walks:
            with closing(ReadAhead(prepare, count)) as ahead:
                chunks = engine.chunks(ahead[index] for index in order)
                yield from engine.sweep(chunks, walks, lambda _: reader, order[-1])


def segment_expression(
    model: GLUSModel,
    tokenizer: GlusTokenizer,
    frames: FrameSource,
    expression: str,
    config: InferenceConfig,
    key_frame: int = 0,
) -> Iterator[FrameResult]:
    """`segment_clip` for one query."""
    for _, result in segment_clip(model, tokenizer, frames, [Query(expression, key_frame)], config):
        yield result
