"""The mask store: equal to `json.load`, indexed once, and exact about what is wrong with a file."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glus.data import mask_store
from glus.data.mask_store import INDEX_SUFFIX, MaskStore, index_places
from glus.errors import InputError, OutputError
from glus.masks import decode_rle, encode_rle


def content(seed: int = 0, annotations: int = 40) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    masks = rng.random((12, 20, 30)) < 0.3
    tracks: dict[str, Any] = {
        str(7 * i): [None if rng.random() < 0.3 else encode_rle(masks[rng.integers(12)]) for _ in range(i % 9)]
        for i in range(annotations)
    }
    uncompressed = {"size": [2, 3], "counts": [1, 2, 3], "note": {"x": [True, -1.5e3, 'a"\\']}}
    return {**tracks, "list": [uncompressed, None], 'é"\\/ \u2028': [], "long": [None] * 3000 + [uncompressed]}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "mask_dict.json"


def everything(store: MaskStore) -> dict[str, Any]:
    return {anno: list(store.track(anno)) for anno in store}


def outcome(file: Path) -> tuple[dict[str, Any], str]:
    """What is in the file, or what is said about it."""
    try:
        return everything(MaskStore(file)), ""
    except InputError as error:
        return {}, str(error)


@pytest.mark.parametrize(
    "style", [{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False, "sort_keys": True}]
)
def test_holds_what_json_load_gives(file: Path, style: Any) -> None:
    value = content()
    file.write_text(json.dumps(value, **style), encoding="utf-8")
    store = MaskStore(file)
    assert len(store) == len(value)
    assert everything(store) == value
    assert everything(MaskStore(file)) == value
    assert all(anno in store for anno in value)
    assert "6" not in store
    assert 7 not in store
    track = store.track("49")
    assert (len(track), track[-1], track[1:3]) == (7, value["49"][-1], value["49"][1:3])
    with pytest.raises(IndexError):
        track[7]
    with pytest.raises(InputError, match="annotation 6 is missing"):
        store.track("6")
    rle = next(entry for entry in value["49"] if entry)
    assert decode_rle(rle, 20, 30, "mask").any()


def test_nothing_in_it(file: Path) -> None:
    file.write_text(" { } ")
    assert everything(MaskStore(file)) == {}


def test_any_change_of_the_bytes_is_as_json_load_sees_it(file: Path) -> None:
    """Cut anywhere, or with a byte replaced: refused with the byte's position, or read alike."""
    text = json.dumps({"7": content()["49"][:3], "list": content()["list"]}).encode()
    rng = np.random.default_rng(1)
    refused = 0
    for number in range(900):
        changed = bytearray(text)
        if number < 300:
            del changed[int(rng.integers(len(text))) :]
        else:
            changed[int(rng.integers(len(text)))] = rng.choice(list(b'{}[]",:nul\\ 0-1eE.x\x01\xff'))
        file.write_bytes(changed)
        try:
            value = json.loads(bytes(changed))
        except ValueError:
            value = None
        found, said = outcome(file)
        if said:
            refused += 1
            contents = any(words in said for words in ("must be", "twice", "cannot be read"))
            assert value is None or contents, said
            assert str(file) in said
        else:
            assert found == value
    assert 300 < refused < 850


FAULTS = {
    "cut": (b'{"a": [null, {"size": [2, 2], "cou', r"it ends too early, after 34 bytes"),
    "cut after a track": (b'{"a": [null]', r"it ends too early, after 12 bytes"),
    "only white space": (b"  \n", r"it ends too early, after 3 bytes"),
    "comma missing": (b'{"a": [null null]}', r"byte 12: unexpected b'null\]\}'"),
    "more after it": (b'{"a": [null]} x', r"byte 14: unexpected b'x'"),
    "comma at the end": (b'{"a": [null],}', r"byte 13: unexpected b'\}'"),
    "bad escape": (rb'{"a": [{"counts": "\q"}]}', r"byte 20: unexpected b'q"),
    "control character": (b'{"a": [{"counts": "\n"}]}', r"byte 19: unexpected"),
    "too deep": (b'{"a": [{"x": ' + b"[" * 40 + b"]" * 40 + b"}]}", r"byte \d+: unexpected"),
    "key twice": (b'{"a": [null], "b": [], "a": [null]}', r"has the key 'a' twice \(byte 34\)"),
    "key twice by escape": (rb'{"a": [null], "\u0061": [null]}', r"has the key 'a' twice"),
    "key twice within": (b'{"a": [{"size": [1, 1], "size": [2, 2]}]}', r"entry 0 \(byte 7\): .*twice"),
    "no object": (b"[1]", r"\(top level\) must be dict"),
    "track no list": (b'{"a": [], "b": 3}', r"annotation b must be a list of run-length codes, found b'3\}'"),
    "entry a number": (b'{"a": [null, 3]}', r"annotation a entry 1: must be a run-length code or null, found b'3"),
    "entry a list": (b'{"a": [[]]}', r"annotation a entry 0: must be"),
    "no text": (b'{"a": [{"x": "\xff"}]}', r"annotation a, entry 0 \(byte 7\)"),
    "empty": (b"", r"cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(file: Path, name: str) -> None:
    data, message = FAULTS[name]
    file.write_bytes(data)
    with pytest.raises(InputError, match=message):
        everything(MaskStore(file))
    assert name.startswith(("key twice within", "no text")) or not list(file.parent.rglob(f"*{INDEX_SUFFIX}"))


def test_missing_file(file: Path) -> None:
    with pytest.raises(InputError, match=r"mask file not found: .*mask_dict\.json"):
        MaskStore(file)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files walked."""
    done: list[Path] = []
    walk = mask_store._walk
    monkeypatch.setattr(mask_store, "_walk", lambda path, data: done.append(path) or walk(path, data))
    return done


def test_walked_once_until_the_file_changes(file: Path, walks: list[Path]) -> None:
    file.write_text(json.dumps(content()))
    for _ in range(3):
        MaskStore(file)
    assert len(walks) == 1
    assert index_places(file)[0].is_file()
    assert not (file.parent / "cache").exists()

    before = file.stat()
    file.write_text(json.dumps(content(seed=1)))  # other bytes at the same time stamp
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert everything(MaskStore(file)) == content(seed=1)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # the same bytes at another
    MaskStore(file)
    assert len(walks) == 3


@pytest.mark.parametrize("damage", [b"", b"GLUSMASK", b"GLUSMASK\xff\xff\0\0\0\0\0\0{", "half", "other"])
def test_a_damaged_index_is_made_again(file: Path, walks: list[Path], damage: Any) -> None:
    file.write_text(json.dumps(content()))
    MaskStore(file)
    place = index_places(file)[0]
    good = place.read_bytes()
    head = {"half": good[: len(good) // 2], "other": b"OTHER123" + good[8:]}
    place.write_bytes(head.get(damage, damage) if isinstance(damage, str) else damage)
    assert everything(MaskStore(file)) == content()
    assert len(walks) == 2
    assert place.read_bytes() == good


def test_the_cache_folder_serves_where_the_data_folder_takes_no_files(file: Path, walks: list[Path]) -> None:
    file.write_text(json.dumps(content()))
    beside, cached = index_places(file)
    beside.mkdir()  # nothing can be renamed to it
    assert everything(MaskStore(file)) == everything(MaskStore(file)) == content()
    assert len(walks) == 1
    assert cached.is_file()
    assert cached.is_relative_to(file.parent / "cache")
    assert list(file.parent.glob(".tmp*")) == []


def test_no_place_for_the_index(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(json.dumps(content()))
    index_places(file)[0].mkdir()
    monkeypatch.setenv("GLUS_CACHE", str(file))
    with pytest.raises(OutputError, match=r"no place for the index of .*set GLUS_CACHE"):
        MaskStore(file)


def test_a_file_that_grows_meanwhile(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(json.dumps(content()))
    walk = mask_store._walk

    def slow(path: Path, data: Any) -> Any:
        index = walk(path, data)
        os.utime(path, ns=(1, 1))
        return index

    monkeypatch.setattr(mask_store, "_walk", slow)
    with pytest.raises(InputError, match="was written to while it was read"):
        MaskStore(file)


def _one(store: MaskStore) -> Any:
    return store.track("49")[:]


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers(file: Path, method: str) -> None:
    file.write_text(json.dumps(content()))
    store = MaskStore(file)
    assert len(pickle.dumps(store)) < 1000
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_one, [store] * 4) == [content()["49"]] * 4


def test_only_a_window_of_the_file_is_held(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages walked are given back."""
    monkeypatch.setattr(mask_store, "_WINDOW", 1 << 20)
    track = json.dumps([{"size": [20, 30], "counts": "0" * 5000}] * 100)
    file.write_text("{" + ", ".join(f'"{i}": {track}' for i in range(40)) + "}")
    dropped: list[tuple[int, int]] = []
    advise = mask_store._advise

    def record(data: Any, advice: str, start: int = 0, length: int = 0) -> None:
        if advice == "MADV_DONTNEED":
            dropped.append((start, start + length))
        advise(data, advice, start, length)

    monkeypatch.setattr(mask_store, "_advise", record)
    assert len(MaskStore(file)) == 40
    assert len(dropped) > 10
    assert dropped[0][0] == 0
    assert all(high >= low for (_, high), (low, _) in pairwise(dropped))
    assert dropped[-1][1] > file.stat().st_size - (2 << 20)
