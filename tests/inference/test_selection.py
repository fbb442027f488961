"""Context frames by the reference's examples, passes, and key-frame look-ups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glus.errors import InputError
from glus.inference.selection import KeyFrames, context_frames, load_key_frames, passes


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (60, [7, 22, 37, 52]),
        (61, [8, 23, 38, 53]),
        (27, [3, 9, 16, 23]),
        (10, [1, 3, 6, 8]),
        (5, [0, 1, 2, 4]),
        (4, [0, 1, 2, 3]),
        (1, [0, 0, 0, 0]),
    ],
)
def test_middle_of_segments(n: int, expected: list[int]) -> None:
    assert context_frames(n) == expected


def test_linspace() -> None:
    assert context_frames(108, choice="linspace") == [0, 35, 71, 107]
    assert context_frames(1, choice="linspace") == [0, 0, 0, 0]


@pytest.mark.parametrize("n", range(1, 40))
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_always_frames_of_the_clip(n: int, count: int) -> None:
    for choice in ("middle", "linspace"):
        chosen = context_frames(n, count, choice)
        assert len(chosen) == count
        assert all(0 <= index < n for index in chosen)


def test_no_context_frames() -> None:
    assert context_frames(7, 0) == []


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        context_frames(0)
    with pytest.raises(ValueError, match="unknown choice"):
        context_frames(5, choice="random")  # type: ignore[arg-type]
    for key in (-1, 5):
        with pytest.raises(ValueError, match="key frame"):
            passes(5, key)


@pytest.mark.parametrize(("n", "key"), [(1, 0), (5, 0), (5, 2), (5, 4)])
def test_passes_cover_every_frame(n: int, key: int) -> None:
    done = passes(n, key)
    assert sorted(set().union(*done)) == list(range(n))
    assert all(one[0] == key for one in done)
    assert len(done) == (1 if key == 0 else 2)


FRAMES = ["00000", "00005", "00010", "00015"]


def write(tmp_path: Path, table: Any) -> Path:
    path = tmp_path / "key_frames.json"
    path.write_text(json.dumps(table))
    return path


def test_names_and_numbers(tmp_path: Path) -> None:
    """A value names a frame, by its text or by its number; numbers are not positions."""
    keys = load_key_frames(write(tmp_path, {"v_0": "00005", "v_1": 10, "v_2": "15"}))
    assert [keys.index("v", str(i), FRAMES) for i in range(3)] == [1, 2, 3]
    assert keys.missing == 0


def test_integer_expression_id(tmp_path: Path) -> None:
    """D22: ReasonVOS stores expression ids as numbers."""
    assert load_key_frames(write(tmp_path, {"v_7": 5})).index("v", 7, FRAMES) == 1


def test_unknown_expression_starts_at_frame_0_and_is_counted(tmp_path: Path) -> None:
    keys = load_key_frames(write(tmp_path, {"v_0": 5}))
    assert keys.index("v", "1", FRAMES) == 0
    assert keys.index("w", "0", FRAMES) == 0
    assert keys.missing == 2


def test_names_that_are_no_numbers() -> None:
    frames = ["a", "b", "00001"]
    assert KeyFrames({"v_0": "b", "v_1": 1}, "k.json").index("v", "0", frames) == 1
    assert KeyFrames({"v_0": "b", "v_1": 1}, "k.json").index("v", "1", frames) == 2


@pytest.mark.parametrize("value", [1, "00001", "x", "-5", ""])
def test_value_that_names_no_frame(tmp_path: Path, value: int | str) -> None:
    keys = load_key_frames(write(tmp_path, {"v_0": value}))
    with pytest.raises(InputError, match=r"key_frames\.json: v_0 = .* names no frame of video v"):
        keys.index("v", "0", FRAMES)


def test_ambiguous_number() -> None:
    keys = KeyFrames({"v_0": 1, "v_1": "01"}, "k.json")
    with pytest.raises(InputError, match="several frames"):
        keys.index("v", "0", ["1", "01"])
    assert keys.index("v", "1", ["1", "01"]) == 1


@pytest.mark.parametrize("table", [[1], {"v_0": 1.5}, {"v_0": None}, {"v_0": True}])
def test_wrong_types(tmp_path: Path, table: Any) -> None:
    with pytest.raises(InputError, match="must be"):
        load_key_frames(write(tmp_path, table))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not found"):
        load_key_frames(tmp_path / "none.json")


def test_a_selectors_detailed_form(tmp_path: Path) -> None:
    """Ids with underscores, which the legacy form cannot tell apart, each keep their own."""
    entry = {"score": 0.5, "scores": {"00005": 0.5}}
    table = {"a": {"1_2": {"key_frame": "00005", **entry}}, "a_1": {"2": {"key_frame": "00010", **entry}}}
    keys = load_key_frames(write(tmp_path, table))
    assert [keys.index("a", "1_2", FRAMES), keys.index("a_1", 2, FRAMES), keys.index("a", 0, FRAMES)] == [1, 2, 0]
    assert (len(keys), keys.missing) == (2, 1)
    with pytest.raises(InputError, match=r"a\.3 has no field 'key_frame'"):
        load_key_frames(write(tmp_path, {"a": {"3": entry}}))
