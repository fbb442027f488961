"""The language model's part: windows of many frames and expressions, read behind what they begin with alike.

All windows of a video share the system text and the context frames; those that start at the same query frame also
share that frame and the first words of the question. Either is read once and its keys and values are reused
(reference glus.md 10); of a window only what follows is read, and of its last layer and heads only one position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from glus.inference.queries import Dialog
from glus.modeling.assemble import upload
from glus.modeling.glus import GLUSModel, Readout
from glus.modeling.language import Prefix
from glus.text.tokenizer import IMAGE_INDEX

PADDING = 0.06
"""Windows this much shorter than the longest of a batch start another one: padding costs as much as text."""


@dataclass(frozen=True)
class Window:
    """A question about the last of `frames`, with those before as history."""

    dialog: Dialog
    frames: tuple[int, ...]

    @property
    def ids(self) -> list[int]:
        return self.dialog.ids(len(self.frames))


class WindowReader:
    """Reads windows of one video.

    Args:
        dialogs: those of all windows to come.
        rounds: frames of the longest window.
        context: (context frames, tokens_per_image, H) LLM tokens.
    """

    def __init__(self, model: GLUSModel, dialogs: Sequence[Dialog], rounds: int, context: torch.Tensor) -> None:
        self.model = model
        rows = [dialog.ids(k) for dialog in dialogs for k in range(1, rounds + 1)]
        alike = _common_length(rows)
        images = [i for i, token in enumerate(rows[0]) if token == IMAGE_INDEX]
        self._cut = images[len(context)]  # the first query image: text before it is the same for all
        self._opening = rows[0][self._cut : alike]
        batch = model.assemble([rows[0][: self._cut]], context)
        _, self.prefix = model.language.begin(batch.embeddings)

    @torch.inference_mode()
    def read(self, windows: Sequence[Window], tokens: Mapping[int, torch.Tensor]) -> Readout:
        """What the model says at the end of each window.

        Args:
            tokens: (tokens_per_image, H) of each of the windows' frames.
        """
        firsts = list(dict.fromkeys(window.frames[0] for window in windows))
        prefix, cut, seen = self.prefix, self._cut, 0
        owners: list[int] | None = None
        if 2 * len(firsts) <= len(windows):
            images = torch.stack([tokens[frame] for frame in firsts])
            openings = self.model.assemble([self._opening] * len(firsts), images)
            _, prefix = self.model.language.begin(openings.embeddings, prefix)
            owners = [firsts.index(window.frames[0]) for window in windows]
            cut, seen = cut + len(self._opening), 1
        order = sorted(range(len(windows)), key=lambda i: -self._length(windows[i]))
        states = [
            self._read_batch([windows[i] for i in batch], tokens, cut, seen, prefix, _pick(owners, batch))
            for batch in self._batches(windows, order)
        ]
        back = torch.empty(len(order), dtype=torch.long)
        back[order] = torch.arange(len(order))
        return self.model.readout(torch.cat(states)[upload(back.tolist(), states[0].device)])

    def _length(self, window: Window) -> int:
        """Positions behind the context frames."""
        per_image = self.model.config.vision.tokens_per_image
        return len(window.ids) - self._cut + len(window.frames) * (per_image - 1)

    def _batches(self, windows: Sequence[Window], order: Sequence[int]) -> Iterator[list[int]]:
        """Cut what is sorted by length where padding would be too much."""
        batch: list[int] = []
        for i in order:
            if batch and self._length(windows[i]) < (1 - PADDING) * self._length(windows[batch[0]]):
                yield batch
                batch = []
            batch.append(i)
        yield batch

    def _read_batch(
        self,
        windows: Sequence[Window],
        tokens: Mapping[int, torch.Tensor],
        cut: int,
        seen: int,
        prefix: Prefix,
        owners: Sequence[int] | None,
    ) -> torch.Tensor:
        """(windows, H) last states; `cut` ids and `seen` images of each window are in the prefix."""
        images = [tokens[frame] for window in windows for frame in window.frames[seen:]]
        shown = torch.stack(images) if images else next(iter(tokens.values()))[None][:0]
        batch = self.model.assemble([window.ids[cut:] for window in windows], shown)
        device = batch.embeddings.device
        owner = upload(owners, device) if owners is not None else None
        last = upload([length - 1 for length in batch.layout.lengths], device)
        return self.model.language.read(batch.embeddings, prefix, owner, last)


def _pick(owners: Sequence[int] | None, batch: Sequence[int]) -> list[int] | None:
    return [owners[i] for i in batch] if owners is not None else None


def _common_length(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with alike, short of the end of the shortest one."""
    limit = min(map(len, rows)) - 1
    return next((i for i in range(limit) if any(row[i] != rows[0][i] for row in rows)), limit)
