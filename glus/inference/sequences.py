"""The sequential part: memory read, decoding, memory write; frame by frame, all sequences of a frame at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glus.inference.queries import Dialog
from glus.inference.windows import Window
from glus.modeling.glus import GLUSModel
from glus.modeling.mask_decoder import FrameFeatures, MaskOutput
from glus.modeling.memory import MemoryBank, MemoryEntry, Recall


@dataclass(frozen=True)
class Walk:
    """One pass of one query.

    Attributes:
        row: number of the query.
        start: frame that the pass begins with.
        step: 1 forward, -1 backward.
        bank: what it remembers; None where every frame is decoded on its own.
    """

    row: int
    dialog: Dialog
    start: int
    step: int
    bank: MemoryBank | None

    @property
    def pass_id(self) -> int:
        return 0 if self.step > 0 else 1

    def position(self, frame: int) -> int:
        """Of a frame in the pass; negative where the pass has not begun."""
        return (frame - self.start) * self.step

    def window(self, frame: int, query_frames: int) -> Window:
        """The dialog about `frame`: up to `query_frames` frames, in the order of the pass."""
        rounds = min(self.position(frame) + 1, query_frames)
        return Window(self.dialog, tuple(frame - self.step * back for back in reversed(range(rounds))))

    def recall(self, frame: int) -> list[Recall]:
        return self.bank.recall(self.position(frame)) if self.bank is not None else []

    def remember(self, frame: int, entry: MemoryEntry | None) -> None:
        """Store the memory of a frame; None of one that failed."""
        if self.bank is None:
            return
        if entry is None:
            self.bank.forget(self.position(frame))
        else:
            self.bank.store(self.position(frame), entry)


@dataclass(frozen=True)
class Decoded:
    """A frame decoded for some sequences: `output` has a row, and `memories` an entry, for each."""

    output: MaskOutput
    memories: Sequence[MemoryEntry]


def decode(
    model: GLUSModel,
    features: FrameFeatures,
    prompts: torch.Tensor,
    recalls: Sequence[Sequence[Recall]],
    remember: bool,
) -> Decoded:
    """Decode one frame for E sequences; changes nothing.

    Args:
        prompts: (E, out_dim) [SEG] embeddings.
        recalls: per sequence the memories it reads.
        remember: encode the memories of this frame; without, `memories` is empty.
    """
    embed = condition(model, features, recalls)
    output = model.sam.decode(features, embed, prompts)
    return Decoded(output, model.sam.encode_memory(features, output).split() if remember else [])


def condition(model: GLUSModel, features: FrameFeatures, recalls: Sequence[Sequence[Recall]]) -> torch.Tensor:
    """(E, C, h, w) map of each sequence; those that read equally many memories are computed together.

    Nothing is padded and no attention is masked, so every sequence reads exactly its own memories.
    """
    by_slot = model.config.behaviour.memory_temporal_encoding
    groups: dict[object, list[int]] = {}
    for row, recall in enumerate(recalls):
        groups.setdefault(tuple(r.slot for r in recall) if by_slot else len(recall), []).append(row)
    parts = []
    for rows in groups.values():
        together = zip(*(recalls[row] for row in rows), strict=True)
        memories = [Recall(slots[0].slot, MemoryEntry.join([one.entry for one in slots])) for slots in together]
        parts.append(model.sam.condition(features, memories, len(rows)))
    if len(parts) == 1:
        return parts[0]
    order = [row for rows in groups.values() for row in rows]
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat(parts)[torch.tensor(back).to(parts[0].device, non_blocking=True)]
