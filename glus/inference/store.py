"""The output folder of a run: its settings, its markers, and the atomic writing of masks. `hosts` says who may.

What is written per frame is up to a subclass of `Store` and of `FrameWriter`; here it is masks.

    <save>/<video>/<exp_id>/<frame>.png     masks; the folder appears complete or not at all
    <save>/.glus/run.json                   settings of the run
    <save>/.glus/done/<video>/<exp_id>.json marker: these masks are complete
    <save>/.glus/partial/<host>/<worker>/   masks being written

An item is complete when its marker is there and its folder holds what the marker says. The marker is written
after the folder was moved into place, so a crash at any moment leaves an item either complete or to be redone.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glus.errors import InputError
from glus.inference.items import Item
from glus.inference.queries import FrameResult
from glus.inference.writing import WAITING, BackgroundWriter
from glus.io import disk_errors, expect, read_json, write_json
from glus.masks import mask_png

logger = logging.getLogger(__name__)


class Store:
    """The output folder `save`, for a process that has entered it.

    Attributes:
        what: what it holds; `suffix` is that of their files.
    """

    what = "masks"
    suffix = ".png"

    def __init__(self, save: str | os.PathLike[str]) -> None:
        self.save = Path(save)
        self.records = self.save / ".glus"

    def marker(self, item: Item) -> Path:
        return self.records / "done" / f"{item.key}.json"

    def partial(self, worker: str) -> Path:
        """Where worker `<host>/<worker>` keeps what it has begun."""
        return self.records / "partial" / worker

    def clear_partial(self, host: int) -> None:
        """Drop what the workers of a host have begun; none of them may live."""
        shutil.rmtree(self.partial(str(host)), ignore_errors=True)

    def prepare(self, settings: Mapping[str, Any], items: Sequence[Item], overwrite: bool) -> None:
        """Make the folder ready for a run with `settings`.

        Raises:
            InputError: it holds masks made with other settings, or masks this program did not make, and
                `overwrite` is not set.
        """
        record = self.records / "run.json"
        with disk_errors(self.save):
            shutil.rmtree(self.records / "partial", ignore_errors=True)
            for scrap in (*self.save.glob(".tmp-*"), *self.records.rglob(".tmp-*")):
                if scrap.is_file():
                    scrap.unlink()  # of an atomic write that was killed; nobody else writes here now
            if overwrite:
                self._clear(items)
            elif record.exists():
                if self._holds_masks(items):  # a first run that failed early leaves nothing to protect
                    self._compare(record, settings)
            else:
                foreign = next((f for i in items if (f := i.mask_folder(self.save)).exists()), None)
                if foreign is not None:
                    raise InputError(
                        f"{foreign} exists and holds no {self.what} of this program; choose another output "
                        "folder, or pass --overwrite to replace it"
                    )
            write_json(record, dict(settings))

    def _markers(self) -> list[Path]:
        return sorted(path for path in (self.records / "done").rglob("*.json") if path.is_file())

    def _holds_masks(self, items: Sequence[Item]) -> bool:
        return bool(self._markers()) or any(item.mask_folder(self.save).exists() for item in items)

    def _compare(self, record: Path, settings: Mapping[str, Any]) -> None:
        before = dict(_flat(expect(read_json(record, "record of the run"), dict, record, "(top level)")))
        now = dict(_flat(settings))
        different = [
            f"{name}: {before.get(name)!r} there, {now.get(name)!r} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if different:
            raise InputError(
                f"{self.save} holds {self.what} of a run with other settings ({'; '.join(different)}); choose "
                "another output folder, or pass --overwrite to start afresh"
            )

    def _clear(self, items: Sequence[Item]) -> None:
        """Remove the records and every mask folder that they or this run's items name; nothing else."""
        done = self.records / "done"
        for marker in self._markers():
            shutil.rmtree(self.save / marker.relative_to(done).with_suffix(""), ignore_errors=True)
        for item in items:
            shutil.rmtree(item.mask_folder(self.save), ignore_errors=True)
        shutil.rmtree(done, ignore_errors=True)
        (self.records / "run.json").unlink(missing_ok=True)  # last: markers without it would seem to be ours

    def completed(self, item: Item) -> dict[str, Any] | None:
        """The marker of `item` if its masks are complete, else None."""
        marker = self.marker(item)
        if not marker.exists():
            return None
        try:
            found: dict[str, Any] = expect(read_json(marker, "marker"), dict, marker, "(top level)")
        except InputError as error:  # a crash of the machine can leave it empty
            logger.warning("%s; its %s are made again", error, self.what)
            return None
        folder = item.mask_folder(self.save)
        if not folder.is_dir():
            return None
        with os.scandir(folder) as entries:
            present = {entry.name for entry in entries if entry.stat().st_size > 0}
        return found if present == {f"{name}{self.suffix}" for name in item.record.frames} else None

    def writer(self, item: Item, worker: str, background: BackgroundWriter) -> FrameWriter:
        """A writer of `item`, of which a worker may have several at a time; `background` does the work."""
        return ItemWriter(self, item, self.partial(worker) / item.key, background)


class FrameWriter(ABC):
    """Collects the files of one item's frames in a private folder and publishes them at once."""

    def __init__(self, store: Store, item: Item, folder: Path, background: BackgroundWriter) -> None:
        self._store = store
        self._item = item
        self._folder = folder
        self._background = background
        self._failed: dict[int, bool] = {}
        self._writing: dict[int, Future[None]] = {}
        with disk_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    @abstractmethod
    def take(self, result: Any) -> bool:
        """Take the result of a frame; says whether it is one of failure."""

    def facts(self) -> dict[str, Any]:
        """What the marker says."""
        names = self._item.record.frames
        return {"frames": len(names), "failed": [name for i, name in enumerate(names) if self._failed[i]]}

    def _put(self, frame: int, make: Callable[[], bytes], failed: bool = False) -> None:
        """Have a thread write what `make` gives as the file of a frame; a later one replaces it."""
        if frame in self._writing:
            wait([self._writing[frame]])  # else the older one might come last
        if len(self._writing) > 2 * WAITING:  # most are done; of a long video they would fill memory
            self._writing = {f: future for f, future in self._writing.items() if not future.done()}
        path = self._folder / f"{self._item.record.frames[frame]}{self._store.suffix}"
        self._writing[frame] = self._background.submit(functools.partial(_write, path, make))
        self._failed[frame] = failed

    def publish(self) -> dict[str, Any]:
        """Wait for the files, move them into place and write the marker; returns what it says.

        Raises:
            OutputError: a file, or the marker, cannot be written.
            RuntimeError: a frame has none.
        """
        item = self._item
        lacking = set(range(len(item.record.frames))) - self._failed.keys()
        if lacking:
            raise RuntimeError(f"{item.key}: the model gave no result for frames {sorted(lacking)[:5]}")
        wait(self._writing.values())
        self._background.check()
        facts = self.facts()
        target, marker = item.mask_folder(self._store.save), self._store.marker(item)
        with disk_errors(target):
            marker.unlink(missing_ok=True)
            if target.exists():  # left by a crash between the next two steps
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._folder, target)
            marker.parent.mkdir(parents=True, exist_ok=True)
            write_json(marker, facts)
        return facts

    def discard(self) -> None:
        """Drop what was written: the item is not to be done."""
        wait(self._writing.values())
        shutil.rmtree(self._folder, ignore_errors=True)


class ItemWriter(FrameWriter):
    """Writes masks."""

    _size: tuple[int, ...] | None = None

    def take(self, result: FrameResult) -> bool:
        self.add(result.frame, result.mask, result.failed)
        return result.failed

    def add(self, frame: int, mask: npt.NDArray[Any], failed: bool) -> None:
        """Take the mask of a frame, bool [height, width], not to be changed afterwards; it is written meanwhile.

        A later one of the same frame replaces it. A failed frame, one the model found no [SEG] for, gets a blank
        mask whatever `mask` holds.

        Raises:
            OutputError: it, or another mask before it, cannot be written.
        """
        self._size = self._size or mask.shape
        if mask.ndim != 2 or mask.shape != self._size:
            raise ValueError(f"{self._item.key}: mask of shape {mask.shape} after {self._size}")
        kept = np.zeros_like(mask) if failed else mask
        self._put(frame, functools.partial(mask_png, kept), failed)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "size": list(self._size or ())}


def _write(path: Path, make: Callable[[], bytes]) -> None:
    with disk_errors(path):
        path.write_bytes(make())  # nobody looks into the folder before it is moved into place


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
