"""Several hosts writing to one folder: who may, and which part of the work is whose.

A *host* is one process that a launcher started, usually one per machine; its workers are the runner's affair.
Hosts never talk to each other. What they must agree on lies in the shared folder:

    <save>/.glus/lock               held for the moments in which a host enters or reports
    <save>/.glus/hosts/<rank>.lock  held by a host and its workers as long as they live
    <save>/.glus/launch.json        how many hosts, for what run, and what was missing when the first entered
    <save>/summary-<rank>.json      report of a host (several hosts only)
    <save>/summary.json             all reports together

Shares follow from the launch record alone, so it does not matter when a host starts. A host that comes while
another of the same run lives joins that launch. Where none lives, it begins a new launch over what is missing
then, except that it takes up its old share where others of its launch have finished theirs: they will not come
back.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glus.config import from_dict
from glus.errors import InputError
from glus.inference.items import Item, items_digest, partition
from glus.inference.store import Store
from glus.io import disk_errors, read_json, write_json
from glus.launched import Launched

logger = logging.getLogger(__name__)

DOOR_SECONDS = 1800.0  # looking through the records of 100,000 items on a slow file system takes minutes
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Busy(InputError):
    """The folder is in use; it may be free soon."""


@dataclass(frozen=True)
class Launch:
    """What the hosts of one launch agree on.

    Attributes:
        token: tells this launch from others.
        hosts: how many there are.
        fingerprint: that of the run (`RunSpec.fingerprint`).
        items_sha256: of the items that the run is about.
        pending: keys of the items that were not complete when it began.
    """

    token: str
    hosts: int
    fingerprint: dict[str, Any]
    items_sha256: str
    pending: tuple[str, ...]

    def same_run(self, other: Launch) -> bool:
        return (self.hosts, self.fingerprint, self.items_sha256) == (
            other.hosts,
            other.fingerprint,
            other.items_sha256,
        )

    def share(self, items: Sequence[Item], rank: int) -> list[Item]:
        """What host `rank` is to do; every host computes the same shares."""
        pending = set(self.pending)
        return partition([item for item in items if item.key in pending], self.hosts)[rank]


@dataclass(frozen=True)
class Membership:
    """A host inside the folder.

    Attributes:
        lock: file descriptor to be inherited by its workers: the host lives as long as one of them does.
    """

    store: Store
    host: Launched
    launch: Launch
    lock: int

    def reported(self, facts: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """Write this host's report; returns those of the launch so far, by rank. Only inside the door."""
        mine = {"launch": self.launch.token, "host": self.host.rank, "machine": socket.gethostname(), **facts}
        if self.launch.hosts == 1:
            return {0: mine}
        path = _report_path(self.store, self.host.rank)
        with disk_errors(path):
            write_json(path, mine)
        return _reports(self.store, self.launch)


@contextmanager
def entered(
    store: Store,
    host: Launched,
    fingerprint: Mapping[str, Any],
    items: Sequence[Item],
    overwrite: bool = False,
    wait_seconds: float = 20.0,
) -> Iterator[Membership]:
    """Enter the folder as `host` of a run.

    The place of a host is held as long as any process holds its lock: a worker that outlives a killed host keeps
    the next one out until it has noticed, which takes it moments. Hence the wait.

    Raises:
        OutputError: the folder cannot be written.
        InputError: another run still holds it after `wait_seconds`; it holds masks of other settings; or
            `overwrite` with several hosts, which could not agree on when to begin afresh.
    """
    if overwrite and host.world > 1:
        raise InputError(f"--overwrite is for one host; remove {store.save} or choose another output folder")
    as_stored = json.loads(json.dumps(fingerprint))
    own = Launch(secrets.token_hex(8), host.world, as_stored, items_digest(items), ())
    deadline = time.monotonic() + wait_seconds
    with _opened(_lock_path(store, host.rank)) as lock:
        announced = False
        while True:
            try:
                with door(store):
                    launch = _enter(store, host.rank, lock, own, items, overwrite)
                break
            except Busy as error:
                if time.monotonic() >= deadline:
                    raise
                if not announced:
                    logger.info("%s; waiting", str(error).split(";")[0])
                    announced = True
                time.sleep(0.1)
        yield Membership(store, host, launch, lock)


def _enter(store: Store, rank: int, lock: int, own: Launch, items: Sequence[Item], overwrite: bool) -> Launch:
    if not _try_lock(lock, store):
        raise _busy(store, f"another run (process {_holder(lock)})")
    try:
        others = _living(store, rank)
        launch = _launch_to_join(store, rank, own, others)
        if launch is None:
            store.prepare(own.fingerprint, items, overwrite)
            pending = tuple(item.key for item in items if store.completed(item) is None)
            launch = Launch(own.token, own.hosts, own.fingerprint, own.items_sha256, pending)
            with disk_errors(store.save):
                for path in store.save.glob("summary-*.json"):
                    path.unlink()
                write_json(_launch_path(store), asdict(launch), indent=None)
        store.clear_partial(rank)
        with disk_errors(store.save):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
    except BaseException:
        fcntl.flock(lock, fcntl.LOCK_UN)
        raise
    return launch


def _launch_to_join(store: Store, rank: int, own: Launch, others: Sequence[int]) -> Launch | None:
    """The launch on record if this host belongs to it, None if it is to begin a new one."""
    launch = _read_launch(store)
    if others:
        if launch is None or not launch.same_run(own):
            known = f"of {launch.hosts} hosts " if launch and launch.hosts != own.hosts else ""
            raise _busy(store, f"another run {known}(host {others[0]}: process {_holder_of(store, others[0])})")
        return launch
    if launch is None or not launch.same_run(own):
        return None
    finished = {r for r, report in _reports(store, launch).items() if not report.get("deaths")}
    return launch if finished and rank not in finished else None


def _busy(store: Store, who: str) -> Busy:
    return Busy(f"{who} is writing to {store.save}; wait until it ends, stop it, or choose another output folder")


def _read_launch(store: Store) -> Launch | None:
    path = _launch_path(store)
    if not path.exists():
        return None
    try:
        return from_dict(Launch, read_json(path, "record of the launch"), str(path))
    except (InputError, TypeError) as error:  # emptied by a crash of the machine, or of another version
        logger.warning("%s; what is missing is shared out anew", error)
        return None


def _reports(store: Store, launch: Launch) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for rank in range(launch.hosts):
        with suppress(InputError):  # none yet
            report = read_json(_report_path(store, rank))
            if isinstance(report, dict) and report.get("launch") == launch.token:
                found[rank] = report
    return found


def _report_path(store: Store, rank: int) -> Path:
    return store.save / f"summary-{rank}.json"


def _launch_path(store: Store) -> Path:
    return store.records / "launch.json"


def _lock_path(store: Store, rank: int) -> Path:
    return store.records / "hosts" / f"{rank}.lock"


@contextmanager
def door(store: Store, wait_seconds: float = DOOR_SECONDS) -> Iterator[None]:
    """Hold the folder's records against the other hosts, for as long as it takes to look through them.

    Raises:
        Busy: someone holds them all the time.
    """
    deadline = time.monotonic() + wait_seconds
    with _opened(store.records / "lock") as descriptor:
        while not _try_lock(descriptor, store):
            if time.monotonic() >= deadline:
                raise _busy(store, f"another run (process {_holder(descriptor)})")
            time.sleep(0.02)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, store: Store) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise InputError(
            f"the file system of {store.save} knows no file locks ({error.strerror}), without which two runs "
            "could write at once; mount it with locks, or choose another output folder"
        ) from None
    return True


def _living(store: Store, rank: int) -> list[int]:
    """Ranks of other hosts that hold their lock. Only inside the door: it takes each lock for a moment."""
    ranks = []
    for path in _lock_path(store, rank).parent.glob("*.lock"):
        if path.stem.isdecimal() and int(path.stem) != rank:
            with _opened(path) as descriptor:
                if not _try_lock(descriptor, store):
                    ranks.append(int(path.stem))
    return sorted(ranks)


def _holder_of(store: Store, rank: int) -> str:
    with _opened(_lock_path(store, rank)) as descriptor:
        return _holder(descriptor)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 128, 0).decode(errors="replace") or "unknown"
