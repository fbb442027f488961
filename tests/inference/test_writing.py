"""Masks written in the background: all, in order, within a bound; a failure is heard of and leaves nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from glus.data.records import Record
from glus.errors import OutputError
from glus.inference.items import Item
from glus.inference.store import ItemWriter, Store
from glus.inference.writing import WAITING, BackgroundWriter
from glus.masks import read_mask

ITEM = Item(Record("mevis", "cats", "0", "the cat", ("a", "b", "c"), Path("frames")), key_frame=1)
OTHER = Item(Record("mevis", "cats", "1", "the other", ("a", "b", "c"), Path("frames")))


@pytest.fixture
def background() -> Iterator[BackgroundWriter]:
    with closing(BackgroundWriter()) as writer:
        yield writer


def mask(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (40, 50)).astype(bool)


def finish(writer: ItemWriter, pixels: np.ndarray) -> None:
    """The rest of an item: a failure shows at any of these calls, as soon as the thread has got to it."""
    for frame in (0, 2):
        writer.add(frame, pixels, failed=False)
    if 1 not in writer._failed:
        writer.add(1, pixels, failed=False)
    writer.publish()


def test_items_written_side_by_side(tmp_path: Path, background: BackgroundWriter) -> None:
    """As expressions of one video are; each appears when it is complete, not before."""
    store = Store(tmp_path)
    writers = [store.writer(item, "0/0", background) for item in (ITEM, OTHER)]
    for frame in range(3):
        for row, writer in enumerate(writers):
            writer.add(frame, mask(10 * row + frame), failed=frame == 2)
    assert not ITEM.mask_folder(tmp_path).exists()
    facts = writers[0].publish()
    assert facts == store.completed(ITEM) == {"frames": 3, "failed": ["c"], "size": [40, 50]}
    assert store.completed(OTHER) is None
    writers[1].publish()
    for row, item in enumerate((ITEM, OTHER)):
        for frame, name in enumerate("abc"):
            expected = mask(10 * row + frame) & (frame != 2)
            assert (read_mask(item.mask_folder(tmp_path) / f"{name}.png") == expected).all()


def test_the_later_mask_of_a_frame_counts(tmp_path: Path, background: BackgroundWriter) -> None:
    writer = Store(tmp_path).writer(ITEM, "0/0", background)
    order = [1, 2, 1, 0] * 20
    for n, frame in enumerate(order):
        writer.add(frame, mask(n), failed=False)
    writer.publish()
    for frame, name in enumerate("abc"):
        last = max(n for n, other in enumerate(order) if other == frame)
        assert (read_mask(ITEM.mask_folder(tmp_path) / f"{name}.png") == mask(last)).all()


def test_a_long_item_keeps_no_more_than_is_under_way(tmp_path: Path, background: BackgroundWriter) -> None:
    item = Item(Record("mevis", "long", "0", "it", tuple(map(str, range(400))), Path("frames")))
    writer = Store(tmp_path).writer(item, "0/0", background)
    kept = []
    for frame in range(400):
        writer.add(frame, mask(frame), failed=False)
        kept.append(len(writer._writing))
    assert max(kept) <= 2 * WAITING + 1
    writer.publish()
    for frame in range(400):
        assert (read_mask(item.mask_folder(tmp_path) / f"{frame}.png") == mask(frame)).all()


def test_an_item_without_all_its_masks_is_not_published(tmp_path: Path, background: BackgroundWriter) -> None:
    writer = Store(tmp_path).writer(ITEM, "0/0", background)
    writer.add(0, mask(0), failed=False)
    with pytest.raises(RuntimeError, match=r"no result for frames \[1, 2\]"):
        writer.publish()
    with pytest.raises(ValueError, match="shape"):
        writer.add(1, mask(0)[:5], failed=False)
    writer.discard()
    assert not list(tmp_path.rglob("*.png"))


def test_a_failure_to_write_is_heard_of_and_leaves_nothing_to_be_seen(
    tmp_path: Path, background: BackgroundWriter
) -> None:
    store = Store(tmp_path)
    writer, other = (store.writer(item, "0/0", background) for item in (ITEM, OTHER))
    (store.partial("0/0") / ITEM.key / "b.png").mkdir()  # stands in the way
    writer.add(0, mask(0), failed=False)
    writer.add(1, mask(1), failed=False)
    with pytest.raises(OutputError, match=r"cannot write .*b\.png"):
        finish(writer, mask(2))
    with pytest.raises(OutputError, match=r"b\.png"):
        other.add(0, mask(0), failed=False)  # nothing further is begun
    assert store.completed(ITEM) is None
    assert not ITEM.mask_folder(tmp_path).exists()
    assert not store.marker(ITEM).exists()


def test_a_full_disk(small_disk: Path, background: BackgroundWriter) -> None:
    store = Store(small_disk)
    writer = store.writer(ITEM, "0/0", background)
    noise = np.random.default_rng(0).integers(0, 2, (3000, 4000)).astype(bool)  # 1.5 MB that do not compress
    with pytest.raises(OutputError, match="No space left"):
        finish(writer, noise)
    writer.discard()
    assert store.completed(ITEM) is None
    assert not list(small_disk.rglob("*.png"))


def test_the_caller_waits_only_when_too_much_is_under_way() -> None:
    gate = threading.Event()
    done: list[int] = []

    def task(n: int) -> None:
        gate.wait(30)
        done.append(n)

    with closing(BackgroundWriter(threads=2, waiting=5)) as writer:
        for n in range(5):
            writer.submit(lambda n=n: task(n))  # type: ignore[misc]
        assert done == []  # all taken although none is done
        sixth = threading.Thread(target=lambda: writer.submit(lambda: task(5)))
        sixth.start()
        sixth.join(0.05)
        assert sixth.is_alive()  # no room
        gate.set()
        sixth.join(30)
        assert not sixth.is_alive()
        writer.submit(lambda: None).result()
    assert sorted(done) == list(range(6))


def test_the_first_failure_ends_the_rest() -> None:
    gate = threading.Event()
    begun: list[int] = []

    def fail() -> None:
        gate.wait(30)
        raise OutputError("disk full")

    before = threading.active_count()
    with closing(BackgroundWriter(threads=1, waiting=50)) as writer:
        futures = [writer.submit(fail), *(writer.submit(lambda n=n: begun.append(n)) for n in range(20))]  # type: ignore[misc]
        gate.set()
        for future in futures:
            assert isinstance(future.exception(30), OutputError)
        with pytest.raises(OutputError, match="disk full"):
            writer.submit(lambda: begun.append(99))
    assert begun == []
    assert threading.active_count() == before
