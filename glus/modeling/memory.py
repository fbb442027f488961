"""The memory bank of one sequence: which past frames are read, and what is kept for them.

One `MemoryBank` belongs to one pass over one (video, expression); nothing is shared and nothing survives the
pass (defect D14 of reference glus.md, section 9). Selection follows section 1.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MemoryEntry:
    """What one decoded frame leaves behind.

    Attributes:
        features: (E, memory_dim, h, w) encoded memory, E expressions.
        position: (E, memory_dim, h, w) its sine position code.
        pointer: (E, hidden_size) SAM-2 object pointer; only with the behaviour `object_pointers`.
    """

    features: torch.Tensor
    position: torch.Tensor
    pointer: torch.Tensor | None = None

    def split(self) -> list[MemoryEntry]:
        """An entry per expression, for the banks of sequences that were decoded together."""
        pointers = self.pointer.split(1) if self.pointer is not None else [None] * len(self.features)
        return [
            MemoryEntry(features, self.position[:1], pointer)
            for features, pointer in zip(self.features.split(1), pointers, strict=True)
        ]

    @staticmethod
    def join(entries: Sequence[MemoryEntry]) -> MemoryEntry:
        """The inverse of `split`; the position code is the same for all."""
        pointers = [entry.pointer for entry in entries if entry.pointer is not None]
        return MemoryEntry(
            torch.cat([entry.features for entry in entries]),
            entries[0].position.expand(len(entries), -1, -1, -1),
            torch.cat(pointers) if pointers else None,
        )


@dataclass(frozen=True)
class Recall:
    """A memory that is read: the entry and its distance slot (1 = the previous frame)."""

    slot: int
    entry: MemoryEntry


def memory_positions(position: int, stride: int, slots: int = 7) -> list[tuple[int, int]]:
    """The (slot, relative position) pairs frame `position` may read, oldest first (section 1.8).

    Slot 1 is the previous frame; slot t >= 2 is `floor((position-2)/stride)*stride - (t-2)*stride`.
    Negative positions are left out.
    """
    pairs = []
    for slot in range(slots, 0, -1):
        if slot == 1:
            past = position - 1
        else:
            past = (position - 2) // stride * stride - (slot - 2) * stride
        if past >= 0:
            pairs.append((slot, past))
    return pairs


class MemoryBank:
    """Memories of one pass, keyed by relative position (0 = the pass's first frame).

    Args:
        stride: distance of the older memories (3 at inference, 1 in training: C8).
        slots: how many memories a frame may read (SAM-2's `num_maskmem`, 7).
        keep_first: always read position 0 too (behaviour `conditioning_frame`).
    """

    def __init__(self, stride: int, slots: int = 7, keep_first: bool = False) -> None:
        self.stride = stride
        self.slots = slots
        self.keep_first = keep_first
        self._entries: dict[int, MemoryEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def recall(self, position: int) -> list[Recall]:
        """The memories frame `position` reads, oldest first; frames without an entry (failed) are skipped."""
        return [Recall(slot, self._entries[past]) for slot, past in self._readable(position)]

    def recalled_positions(self, position: int) -> list[int]:
        """Relative positions `recall` would read, in its order."""
        return [past for _, past in self._readable(position)]

    def _readable(self, position: int) -> list[tuple[int, int]]:
        pairs = memory_positions(position, self.stride, self.slots)
        if self.keep_first and position > 0 and 0 in self._entries:
            # SAM-2 gives a conditioning frame the oldest slot, whatever its distance.
            pairs = [(self.slots, 0), *[(slot, past) for slot, past in pairs if slot != self.slots and past != 0]]
        return [(slot, past) for slot, past in pairs if past in self._entries]

    def store(self, position: int, entry: MemoryEntry) -> None:
        """Keep the memory of frame `position` and drop those no later frame can read (D15)."""
        self._entries[position] = entry
        self.forget(position)

    def forget(self, position: int) -> None:
        """Drop what no frame after `position` can read; for a frame that stores nothing."""
        oldest = (position - 1) // self.stride * self.stride - (self.slots - 2) * self.stride
        for past in list(self._entries):
            reachable = past == position or (past % self.stride == 0 and past >= oldest)
            if not reachable and not (self.keep_first and past == 0):
                del self._entries[past]
