"""Which memories a frame reads and which are kept (reference glus.md 1.8; D13, D14, D15)."""

from __future__ import annotations

import random

import pytest
import torch
from tiny import tiny_clip, tiny_config, tiny_glus, traces

from glus.config import InferenceConfig
from glus.inference.engine import segment_expression
from glus.modeling.memory import MemoryBank, MemoryEntry, memory_positions
from glus.video import open_frames

TABLE = [
    (0, [], []),
    (1, [0], [0]),
    (2, [0, 1], [0, 1]),
    (3, [0, 1, 2], [0, 2]),
    (4, [0, 1, 2, 3], [0, 3]),
    (5, [0, 1, 2, 3, 4], [0, 3, 4]),
    (8, [1, 2, 3, 4, 5, 6, 7], [0, 3, 6, 7]),
    (10, [3, 4, 5, 6, 7, 8, 9], [0, 3, 6, 9]),
    (20, [13, 14, 15, 16, 17, 18, 19], [3, 6, 9, 12, 15, 18, 19]),
    (30, [23, 24, 25, 26, 27, 28, 29], [12, 15, 18, 21, 24, 27, 29]),
]


def entry(number: int) -> MemoryEntry:
    return MemoryEntry(torch.full((1, 1, 1, 1), float(number)), torch.zeros(1, 1, 1, 1))


class KeepsAll(MemoryBank):
    """The original's bank: nothing is ever dropped (D15)."""

    def store(self, position: int, entry: MemoryEntry) -> None:
        self._entries[position] = entry


@pytest.mark.parametrize(("position", "every", "third"), TABLE)
def test_selection_table(position: int, every: list[int], third: list[int]) -> None:
    for stride, wanted in ((1, every), (3, third)):
        assert [past for _, past in memory_positions(position, stride)] == wanted
        bank = MemoryBank(stride)
        for past in range(position):
            bank.store(past, entry(past))
        assert bank.recalled_positions(position) == wanted
        assert [int(r.entry.features) for r in bank.recall(position)] == wanted


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7])
def test_slots_follow_the_formula(stride: int) -> None:
    """Against the two lines of section 1.8, written out."""
    for position in range(60):
        wanted = {
            1: position - 1,
            **{t: ((position - 2) // stride) * stride - (t - 2) * stride for t in range(2, 8)},
        }
        assert dict(memory_positions(position, stride)) == {t: p for t, p in wanted.items() if p >= 0}


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("slots", [1, 2, 4, 7])
@pytest.mark.parametrize("keep_first", [False, True])
def test_eviction_never_drops_what_a_later_frame_reads(stride: int, slots: int, keep_first: bool) -> None:
    """Also when frames fail and store nothing; and what is kept stays bounded."""
    for seed in range(10):
        rng = random.Random(seed)
        bank, reference = MemoryBank(stride, slots, keep_first), KeepsAll(stride, slots, keep_first)
        for position in range(80):
            assert bank.recalled_positions(position) == reference.recalled_positions(position), (seed, position)
            assert [int(r.entry.features) for r in bank.recall(position)] == bank.recalled_positions(position)
            assert [r.slot for r in bank.recall(position)] == [r.slot for r in reference.recall(position)]
            assert len(bank.recall(position)) <= slots
            if rng.random() < 0.7 or (position == 0 and seed % 2):
                bank.store(position, entry(position))
                reference.store(position, entry(position))
            assert len(bank) <= slots + 2


def test_a_gap_is_skipped_not_filled() -> None:
    """A failed frame leaves no memory (D10): its readers read one fewer."""
    bank = MemoryBank(3)
    for position in (0, 1, 2, 4, 5, 6):
        bank.store(position, entry(position))
    assert bank.recalled_positions(7) == [0, 6]
    assert bank.recalled_positions(8) == [0, 6]


def test_conditioning_frame_is_always_read() -> None:
    bank = MemoryBank(3, keep_first=True)
    assert bank.recall(0) == []
    for position in range(50):
        bank.store(position, entry(position))
    assert bank.recalled_positions(50) == [0, *without_oldest_slot(50)]
    assert bank.recall(50)[0].slot == 7
    assert bank.recalled_positions(0) == []


def without_oldest_slot(position: int) -> list[int]:
    return [past for slot, past in memory_positions(position, 3) if slot < 7]


def test_an_aborted_pass_leaves_nothing_behind() -> None:
    """D14: the original's bank is shared, so a pass that breaks off leaves entries for the next one."""
    glus = tiny_glus()
    clean = traces(glus, tiny_clip(5, seed=1), "a red square")
    walk = segment_expression(
        glus.model, glus.tokenizer, open_frames(tiny_clip(5, seed=2)), "a circle", InferenceConfig()
    )
    next(walk)
    next(walk)
    again = traces(glus, tiny_clip(5, seed=1), "a red square")
    for one, other in zip(clean, again, strict=True):
        assert one.recalled == other.recalled
        assert one.output is not None
        assert other.output is not None
        assert torch.equal(one.output.low_res, other.output.low_res)


@torch.inference_mode()
def test_no_memory_embedding_is_added_per_sequence() -> None:
    """D13: a sequence without memories gets `no_mem_embed`; another one's map is untouched by that."""
    glus = tiny_glus()
    features = glus.model.encode_frame(torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    sam = glus.model.sam
    bank = glus.model.new_bank(3)
    first = glus.model.segment_frame(features, torch.randn(2, 32), bank, 0)
    assert torch.equal(first.embed, (features.embed + sam.no_mem_embed.reshape(1, -1, 1, 1)).expand(2, -1, -1, -1))
    glus.model.remember(features, first, bank, 0)
    conditioned = sam.condition(features, bank.recall(1), 2)
    empty = sam.condition(features, glus.model.new_bank(3).recall(1), 2)
    assert torch.equal(empty, first.embed)
    assert torch.equal(sam.condition(features, bank.recall(1), 2), conditioned)
    assert not torch.allclose(conditioned, empty, atol=1e-2)


def test_bank_follows_the_config() -> None:
    glus = tiny_glus(tiny_config(memory_slots=4))
    bank = glus.model.new_bank(2)
    assert (bank.slots, bank.stride, bank.keep_first) == (4, 2, False)
    assert glus.model.sam.maskmem_tpos_enc.shape[0] == 4
