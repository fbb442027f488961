"""Random access to a mask file of gigabytes without loading it.

The file is walked once; where each run-length code lies goes into an index beside it (or in the cache folder
when that place takes no files). Afterwards both are memory-mapped: opening takes milliseconds, processes share the
pages, and one mask costs one small parse. An index that does not fit its file any more is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from glus.data import json_scan
from glus.errors import InputError, OutputError
from glus.io import atomic_path, disk_errors

logger = logging.getLogger(__name__)

FORMAT = 1
INDEX_SUFFIX = ".glus-index"
_MAGIC = b"GLUSMASK"
_EDGE = 1 << 16  # bytes at both ends that go into the fingerprint
_WINDOW = 1 << 25  # bytes of the file kept in memory while it is walked


class MaskStore:
    """`{"<annotation>": [{run-length code} or null, ...], ...}` on disk, by annotation and frame.

    Copies (a pickle, a forked worker) share the mapped pages.

    Raises:
        InputError: missing, not such a file, cut short or with a key twice; the message gives the byte.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._open()

    def _open(self) -> None:
        self._data = _map(self.path)
        fingerprint = _fingerprint(self.path, self._data)
        places = index_places(self.path)
        index = next((i for i in (_Index.load(place, fingerprint) for place in places) if i is not None), None)
        if index is None:
            index = _build(self.path, self._data, fingerprint, places)
        self._index = index
        _advise(self._data, "MADV_RANDOM")

    def __len__(self) -> int:
        return len(self._index.key_ends)

    def __iter__(self) -> Iterator[str]:
        """Annotations, in the order of their bytes."""
        return (self._index.key(number).decode() for number in range(len(self)))

    def __contains__(self, anno: object) -> bool:
        return isinstance(anno, str) and self._index.find(anno) is not None

    def track(self, anno: str) -> StoredTrack:
        """The masks of an annotation, one entry per frame.

        Raises:
            InputError: there is no such annotation.
        """
        number = self._index.find(anno)
        if number is None:
            raise InputError(f"{self.path}: annotation {anno} is missing")
        ends = self._index.entry_ends
        first = int(ends[number - 1]) if number else 0
        return StoredTrack(self, anno, number, first, int(ends[number]) - first)

    def entry(self, track: StoredTrack, index: int) -> Any:
        """The parsed entry of a frame; None for null."""
        length = int(self._index.lengths[track.first + index])
        if not length:
            return None
        start = int(self._index.starts[track.number]) + int(self._index.offsets[track.first + index])
        try:
            return json.loads(self._data[start : start + length], object_pairs_hook=_unique)
        except ValueError as error:
            raise InputError(
                f"{self.path}: annotation {track.anno}, entry {index} (byte {start}): {error}"
            ) from None


@dataclass(frozen=True)
class StoredTrack(Sequence[Any]):
    """One annotation of a `MaskStore`: run-length codes or None by frame, parsed on access."""

    store: MaskStore
    anno: str
    number: int
    first: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        place = range(self.length)[index]
        return [self[i] for i in place] if isinstance(place, range) else self.store.entry(self, place)


def index_places(path: Path) -> list[Path]:
    """Where the index of a mask file may lie: beside it, or in the cache folder (`GLUS_CACHE`, ~/.cache/glus)."""
    cache = Path(os.environ.get("GLUS_CACHE") or Path.home() / ".cache" / "glus")
    name = hashlib.blake2b(str(path.resolve()).encode(), digest_size=12).hexdigest()
    return [path.with_name(path.name + INDEX_SUFFIX), cache / "masks" / (name + INDEX_SUFFIX)]


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(out := dict(items)) < len(items):
        raise ValueError("it has a key twice")
    return out


def _map(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as handle:
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise InputError(f"mask file not found: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: the file is empty
        raise InputError(f"mask file {path} cannot be read: {error}") from None


def _advise(data: mmap.mmap, advice: str, start: int = 0, length: int = 0) -> None:
    """Tell the system how pages will be used, where it has a word for that."""
    if hasattr(mmap, advice):
        data.madvise(getattr(mmap, advice), start, length or len(data) - start)


def _fingerprint(path: Path, data: mmap.mmap) -> dict[str, Any]:
    """What changes when the file does; made of a few pages of it."""
    edges = hashlib.blake2b(data[:_EDGE] + data[-_EDGE:], digest_size=16).hexdigest()
    return {"format": FORMAT, "size": len(data), "mtime_ns": os.stat(path).st_mtime_ns, "edges": edges}


@dataclass(frozen=True)
class _Index:
    """Where everything lies; annotations are sorted by the bytes of their names.

    Attributes:
        key_ends: int64 [annotations], ends of the names in `keys`.
        starts: int64 [annotations], byte of the file from which `offsets` count.
        entry_ends: int64 [annotations], running number of entries.
        offsets, lengths: uint32 [entries], of the run-length codes; length 0 for null.
        keys: the names in UTF-8, joined.
    """

    key_ends: NDArray[np.int64]
    starts: NDArray[np.int64]
    entry_ends: NDArray[np.int64]
    offsets: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    keys: bytes | memoryview

    def key(self, number: int) -> bytes:
        return bytes(self.keys[int(self.key_ends[number - 1]) if number else 0 : int(self.key_ends[number])])

    def find(self, anno: str) -> int | None:
        """Position of an annotation."""
        name = anno.encode(errors="surrogatepass")
        number = bisect_left(range(len(self.key_ends)), name, key=self.key)
        return number if number < len(self.key_ends) and self.key(number) == name else None

    def save(self, path: Path, fingerprint: dict[str, Any]) -> None:
        arrays = (self.key_ends, self.starts, self.entry_ends, self.offsets, self.lengths)
        sizes = [len(self.key_ends), len(self.offsets), len(self.keys)]
        head = json.dumps({"fingerprint": fingerprint, "sizes": sizes}).encode()
        head += b" " * (-len(head) % 8)
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            handle.write(_MAGIC + len(head).to_bytes(8, "little") + head)
            for array in arrays:
                handle.write(array.data)
            handle.write(self.keys)

    @staticmethod
    def load(path: Path, fingerprint: dict[str, Any]) -> _Index | None:
        """Map the index at `path`; None when there is none, or none for this state of the file."""
        try:
            data = memoryview(_map(path))
        except InputError:
            return None
        try:
            position = 16 + int.from_bytes(data[8:16], "little")
            head = json.loads(bytes(data[16:position]))
            fits = bytes(data[:8]) == _MAGIC and head["fingerprint"] == fingerprint
            annotations, entries, letters = head["sizes"]
        except (ValueError, KeyError, TypeError):  # another program's file, or a damaged one
            return None
        if not fits or len(data) != position + 24 * annotations + 8 * entries + letters:
            return None
        wide = np.frombuffer(data, np.int64, 3 * annotations, position).reshape(3, annotations)
        narrow = np.frombuffer(data, np.uint32, 2 * entries, position + wide.nbytes).reshape(2, entries)
        return _Index(wide[0], wide[1], wide[2], narrow[0], narrow[1], data[len(data) - letters :])


def _build(path: Path, data: mmap.mmap, fingerprint: dict[str, Any], places: Sequence[Path]) -> _Index:
    """Walk the file and save the index at the first place that takes it."""
    index = _walk(path, data)
    if _fingerprint(path, data) != fingerprint:
        raise InputError(f"mask file {path} was written to while it was read; start again when it is complete")
    for place in places:
        try:
            with disk_errors(place):
                if place is not places[0]:
                    place.parent.mkdir(parents=True, exist_ok=True)
                index.save(place, fingerprint)
                return index
        except OutputError as error:
            logger.info("%s", error)
    raise OutputError(
        f"no place for the index of {path}: neither beside it nor at {places[-1]}; set GLUS_CACHE to a folder "
        "that can be written to"
    )


def _walk(path: Path, data: mmap.mmap) -> _Index:
    _advise(data, "MADV_SEQUENTIAL")
    content = np.frombuffer(data, np.uint8)
    tracks: dict[bytes, tuple[int, NDArray[np.uint32], NDArray[np.uint32]]] = {}
    with tqdm(total=len(data), desc=f"index {path.name}", unit="B", unit_scale=True, disable=None) as bar:
        dropped = 0
        for key, starts, ends, position in _tracks(path, content):
            if key in tracks:
                raise InputError(f"mask file {path} has the key {key.decode()!r} twice (byte {position})")
            first = int(starts[starts > 0].min(initial=2**62))
            present = starts > 0
            offsets = np.where(present, starts - first, 0)
            tracks[key] = (
                first if present.any() else 0,
                offsets.astype(np.uint32),
                (ends - starts).astype(np.uint32),
            )
            bar.update(position - bar.n)
            if position - dropped >= _WINDOW:
                start = dropped - dropped % mmap.PAGESIZE
                _advise(data, "MADV_DONTNEED", start, position - start)
                dropped = position
        bar.update(len(data) - bar.n)
    names = sorted(tracks)
    none = [np.zeros(0, np.uint32)]
    return _Index(
        key_ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        starts=np.array([tracks[name][0] for name in names], np.int64),
        entry_ends=np.cumsum([len(tracks[name][1]) for name in names], dtype=np.int64),
        offsets=np.concatenate([tracks[name][1] for name in names] or none),
        lengths=np.concatenate([tracks[name][2] for name in names] or none),
        keys=b"".join(names),
    )


def _tracks(
    path: Path, content: NDArray[np.uint8]
) -> Iterator[tuple[bytes, NDArray[np.int64], NDArray[np.int64], int]]:
    """Name, starts and ends of its entries (0 for null), and the byte after it, of each annotation in the file."""
    position = json_scan.skip_space(content, 0)
    if position < len(content) and content[position] != ord("{"):
        raise InputError(f"{path}: (top level) must be dict, from annotation to a list of run-length codes")
    found, stack = np.zeros(4, np.int64), np.zeros(json_scan.MAX_DEPTH, np.uint8)
    starts, ends = np.zeros((2, 1024), np.int64)
    position = json_scan.skip_space(content, position + 1)
    more = not (position < len(content) and content[position] == ord("}"))
    while more:
        after = json_scan.scan_track(content, position, found, starts, ends, stack)
        if after < 0 and found[0] == json_scan.FULL:
            starts, ends = np.zeros((2, 2 * len(starts)), np.int64)
            continue
        if after < 0:
            raise _fault(path, content, found, -1 - after)
        key = _key(path, content, found)
        yield key, starts[: found[3]].copy(), ends[: found[3]].copy(), after
        position = json_scan.skip_space(content, after)
        more = position < len(content) and content[position] == ord(",")
        position += more
    if position >= len(content) or content[position] != ord("}"):
        raise _not_json(path, content, position)
    if (position := json_scan.skip_space(content, position + 1)) < len(content):
        raise _not_json(path, content, position)


def _key(path: Path, content: NDArray[np.uint8], found: NDArray[np.int64]) -> bytes:
    try:
        name: str = json.loads(content[found[1] : found[2]].tobytes())
        return name.encode(errors="surrogatepass")
    except ValueError:
        raise _not_json(path, content, int(found[1])) from None


def _not_json(path: Path, content: NDArray[np.uint8], position: int) -> InputError:
    if position >= len(content):
        fault = f"it ends too early, after {len(content)} bytes"
    else:
        fault = f"byte {position}: unexpected {content[position : position + 20].tobytes()!r}"
    return InputError(f"mask file {path} is not valid JSON ({fault}); is the download complete?")


def _fault(path: Path, content: NDArray[np.uint8], found: NDArray[np.int64], position: int) -> InputError:
    """Wrong contents rather than wrong JSON, if the byte could begin a value."""
    begins_value = position < len(content) and chr(content[position]) in '{["-0123456789tfn'
    if not begins_value or found[0] == json_scan.NO_JSON:
        return _not_json(path, content, position)
    name = _key(path, content, found).decode(errors="replace")
    if found[0] == json_scan.NO_TRACK:
        wanted = "must be a list of run-length codes"
    else:
        wanted = f"entry {found[3]}: must be a run-length code or null"
    shown = content[position : position + 20].tobytes()
    return InputError(f"{path}: annotation {name} {wanted}, found {shown!r} (byte {position})")
