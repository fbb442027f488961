"""Frames read ahead: the right ones, no more than allowed, errors where they belong, threads that end."""

from __future__ import annotations

import random
import threading
from contextlib import closing

import numpy as np
import pytest

from glus.errors import InputError
from glus.inference.prefetch import AHEAD, ReadAhead
from glus.video import Frame


class Counted:
    """Frames that say their index and remember who asked for them; some cannot be read."""

    def __init__(self, count: int, unreadable: tuple[int, ...] = ()) -> None:
        self.count = count
        self.unreadable = unreadable
        self.asked: list[int] = []
        self.threads: set[int] = set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Frame:
        self.asked.append(index)
        self.threads.add(threading.get_ident())
        if index in self.unreadable:
            raise InputError(f"frame {index} is damaged")
        return np.full((2, 2, 3), index, np.uint8)


def ahead_of(source: Counted, ahead: int = AHEAD) -> ReadAhead[Frame]:
    return ReadAhead(source.__getitem__, len(source), ahead)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("ahead", [0, 1, 4, 50])
def test_a_walk_decodes_every_frame_once_in_one_thread(backward: bool, ahead: int) -> None:
    source = Counted(20)
    with closing(ahead_of(source, ahead)) as frames:
        assert len(frames) == 20
        for i in range(20)[:: -1 if backward else 1]:
            assert frames[i][0, 0, 0] == i
            assert frames[i] is frames[i]  # asked again: the same, at no cost
    assert sorted(source.asked) == list(range(20))
    assert len(source.threads) == 1
    assert threading.get_ident() not in source.threads


def test_frames_are_ready_before_they_are_asked_for() -> None:
    source = Counted(20)
    with closing(ahead_of(source, 3)) as frames:
        assert (frames[5][0, 0, 0], frames[6][0, 0, 0]) == (5, 6)
        frames._thread.submit(lambda: None).result()  # all that was ordered is done
        assert source.asked == [5, 6, 7, 8, 9]
        assert frames[7][0, 0, 0] == 7
        frames._thread.submit(lambda: None).result()
        assert source.asked == [5, 6, 7, 8, 9, 10]
        assert frames[6][0, 0, 0] == 6  # the walk turns
        frames._thread.submit(lambda: None).result()
        assert source.asked[6:] == [6, 5, 4, 3]


def test_jumps_read_nothing_else() -> None:
    source = Counted(60)
    with closing(ahead_of(source)) as frames:
        for i in (7, 22, 37, 52, 0):  # context frames, then the first of the walk
            assert frames[i][0, 0, 0] == i
    assert source.asked == [7, 22, 37, 52, 0]


def test_what_is_held_stays_within_the_bound() -> None:
    """At any pattern of access: the current value, those ahead, and one in the making."""
    alive = most = 0
    lock = threading.Lock()

    class Value:
        def __init__(self) -> None:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    dice = random.Random(1)
    with closing(ReadAhead(lambda index: Value(), 500, ahead=3)) as values:
        place = 250
        for _ in range(1000):
            place = dice.choice([place + 1, place + 1, place - 1, dice.randrange(500)]) % 500
            assert isinstance(values[place], Value)
    assert 4 <= most <= 5
    assert alive == 0


def test_an_error_is_raised_where_its_frame_is_asked_for() -> None:
    source = Counted(10, unreadable=(4,))
    with closing(ahead_of(source)) as frames:
        for i in range(4):
            assert frames[i][0, 0, 0] == i
        with pytest.raises(InputError, match="frame 4 is damaged"):
            frames[4]
        source.unreadable = ()
        assert frames[4][0, 0, 0] == 4  # asked again, it is read again
        assert frames[5][0, 0, 0] == 5
    with closing(ahead_of(Counted(10, unreadable=(4,)))) as frames:
        assert [int(frames[i][0, 0, 0]) for i in range(4)] == [0, 1, 2, 3]  # read ahead, never asked for


def test_indices_are_those_of_a_sequence() -> None:
    with closing(ahead_of(Counted(3))) as frames:
        assert [int(frame[0, 0, 0]) for frame in frames] == [0, 1, 2]  # type: ignore[attr-defined]
        assert frames[-1][0, 0, 0] == 2
        with pytest.raises(IndexError):
            frames[3]
    with pytest.raises(InputError, match="found -1"):
        ahead_of(Counted(3), -1)


def test_the_thread_ends_with_it() -> None:
    before = threading.active_count()
    with closing(ahead_of(Counted(9))) as frames:
        frames[0]
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
