"""What a run has to do and how it is shared out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from glus.data.records import Record
from glus.errors import InputError
from glus.inference.items import (
    Item,
    check_items,
    from_wire,
    items_digest,
    items_without_files,
    partition,
    to_wire,
)


def item(video: str, exp_id: str = "0", frames: int = 3, key_frame: int = 0, text: str = "a thing") -> Item:
    names = tuple(f"{i:05d}" for i in range(frames))
    return Item(Record("mevis", video, exp_id, text, names, Path("frames") / video), key_frame)


def random_items(seed: int) -> list[Item]:
    dice = random.Random(seed)
    return [
        item(f"v{v}", str(e), frames, key_frame=dice.randrange(frames))
        for v in range(dice.randrange(1, 30))
        for frames in [dice.choice([1, 2, 20, 60, 300])]
        for e in range(dice.randrange(1, 16))
    ]


@pytest.mark.parametrize("seed", range(30))
def test_partition_loses_and_doubles_nothing(seed: int) -> None:
    items = random_items(seed)
    for workers in (1, 2, 3, 8, 64):
        shares = partition(items, workers)
        assert len(shares) == workers
        assert sorted(i.key for share in shares for i in share) == sorted(i.key for i in items)


@pytest.mark.parametrize("seed", range(5))
def test_partition_does_not_depend_on_order(seed: int) -> None:
    items = random_items(seed)
    shuffled = random.Random(1).sample(items, len(items))
    assert partition(items, 3) == partition(shuffled, 3)


@pytest.mark.parametrize("seed", range(30))
def test_partition_is_balanced(seed: int) -> None:
    items = random_items(seed)
    total, longest = sum(i.steps for i in items), max(i.steps for i in items)
    for workers in (2, 3, 8):
        heaviest = max(sum(i.steps for i in share) for share in partition(items, workers))
        assert heaviest <= total / workers + max(longest, total / (4 * workers))


def test_partition_keeps_a_video_together_where_balance_allows() -> None:
    items = [item(f"v{v}", str(e)) for v in range(40) for e in range(5)]
    for share in partition(items, 4):
        videos = [i.record.video for i in share]
        assert len(set(videos)) == 10
        assert videos == sorted(videos)


def test_key_frame_counts_twice() -> None:
    assert item("v", frames=5).steps == 5
    assert item("v", frames=5, key_frame=2).steps == 6


def test_wire_form_returns_the_items() -> None:
    items = [item("a", "0"), item("a", "1", key_frame=2), item("b", "x", 1), item("c/d", "0", text="ü \n")]
    assert [i for group in from_wire(to_wire(items)) for i in group] == items
    assert [len(group) for group in from_wire(to_wire(items))] == [2, 1, 1]


def test_digest_sees_what_decides_the_masks() -> None:
    items = [item("a", "0"), item("a", "1")]
    digest = items_digest(items)
    assert digest == items_digest(items[::-1])
    for other in (item("a", "1", key_frame=1), item("a", "1", text="other"), item("a", "2"), item("a", "1", 4)):
        assert items_digest([items[0], other]) != digest


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([], "no expressions"),
        ([item("a"), item("a")], "twice"),
        ([item(".glus")], "reserved"),
        ([item("summary.json")], "reserved"),
        ([item("summary-12.json")], "reserved"),
        ([item("a", "b"), item("a/b", "0")], "inside"),
    ],
)
def test_items_without_a_place_of_their_own(items: list[Item], told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_items(items)


def test_missing_files_are_told_per_item(tmp_path: Path) -> None:
    whole, lacking = (
        Item(Record("mevis", name, "0", "x", ("0", "1", "2"), tmp_path / name)) for name in ("whole", "lacking")
    )
    for record in (whole.record, lacking.record):
        record.frame_folder.mkdir()
        for i in range(3):
            record.frame_path(i).touch()
    assert items_without_files([whole, lacking]) == {}
    lacking.record.frame_path(1).unlink()
    lacking.record.frame_path(2).unlink()
    faults = items_without_files([whole, lacking])
    assert list(faults) == ["lacking/0"]
    assert "1.jpg and 1 more" in faults["lacking/0"]
