"""Running many items on several worker processes: start, watch, report, and stop them.

The parent decides everything (which items, which worker, which folder) before a worker starts; workers never
choose work. See `store` for what makes a run resumable, `hosts` for several parents, `worker` for the protocol.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glus.errors import InputError
from glus.inference.hosts import Membership, door, entered
from glus.inference.items import Item, check_items, items_without_files, partition, to_wire
from glus.inference.store import Store
from glus.io import disk_errors, write_json
from glus.launched import VARIABLES, Launched

logger = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-m", "glus.inference.worker")
STOP_SECONDS = 5.0


class WorkerDied(RuntimeError):
    """A worker process ended without finishing; what it completed stays."""


@dataclass(frozen=True)
class RunSpec:
    """How to run.

    Attributes:
        save: output folder.
        settings: what the workers need to load the model, passed to them as it is.
        fingerprint: what the masks depend on; a folder made with another one is refused.
        environments: one mapping per worker, added to its environment.
        overwrite: start afresh in a folder with other masks.
        host: which of several hosts this is.
        lock_seconds: how long to wait for the folder.
        store: what lies in the folder, and `worker_command` starts a process that writes that.
        doing: what the progress bar says.
    """

    save: Path
    settings: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    environments: Sequence[Mapping[str, str]]
    overwrite: bool = False
    host: Launched = field(default_factory=Launched)
    lock_seconds: float = 20.0
    worker_command: Sequence[str] = WORKER_COMMAND
    store: type[Store] = Store
    doing: str = "segmenting"


@dataclass
class _Worker:
    index: int
    process: subprocess.Popen[bytes]
    left: dict[str, Item]


@dataclass
class _Progress:
    steps: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    deaths: list[str] = field(default_factory=list)


def run_items(items: Sequence[Item], spec: RunSpec) -> tuple[dict[str, Any], dict[str, str]]:
    """Do this host's share of all `items` that are not yet complete in `spec.save`.

    Returns:
        The summary, as written to `summary.json`, and what this host could not do (item -> message).
        The summary counts the whole folder in `items`, `frames` and `failures` (frames without [SEG]); `seconds`
        is the longest of the hosts', the rest is summed over those that have reported. The last host to end writes
        the whole.

    Raises:
        InputError: nothing can be done (no frames, checkpoint, output folder, folder in use).
        WorkerDied: after the other workers ended; running again continues.
    """
    check_items(items)
    started = time.monotonic()
    store = spec.store(spec.save)
    with entered(store, spec.host, spec.fingerprint, items, spec.overwrite, spec.lock_seconds) as member:
        share = member.launch.share(items, spec.host.rank)
        pending = [item for item in share if store.completed(item) is None]
        done = len(items) - len(member.launch.pending) + len(share) - len(pending)
        if done:
            logger.info("%d of %d items are complete already", done, len(items))
        if spec.host.world > 1:
            logger.info("host %d of %d: %d items to do", spec.host.rank, spec.host.world, len(pending))
        progress = _Progress(errors=items_without_files(pending))
        for key, message in progress.errors.items():
            logger.error("%s: %s", key, message)
        doable = [item for item in pending if item.key not in progress.errors]
        if pending and not doable and len(member.launch.pending) == len(items):
            raise InputError(f"no item has all its frames; {next(iter(progress.errors.values()))}")
        if doable:
            try:
                _run_workers(doable, spec, member, progress)
            finally:
                store.clear_partial(spec.host.rank)
        facts = {
            "items": len(share),
            "seconds": round(time.monotonic() - started, 3),
            "frames_this_run": progress.steps,
            "workers": len(spec.environments),
            "errors": dict(sorted(progress.errors.items())),
            "deaths": progress.deaths,
        }
        with door(store):
            summary = merged(items, store, member.reported(facts))
            path = spec.save / "summary.json"
            with disk_errors(path):
                write_json(path, summary)
    if progress.deaths:
        raise WorkerDied("; ".join(progress.deaths))
    return summary, progress.errors


def merged(items: Sequence[Item], store: Store, reports: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of the folder from the reports of the hosts, by rank."""
    markers = [marker for item in items if (marker := store.completed(item)) is not None]
    hosts = [reports[rank] for rank in sorted(reports)]
    seconds = max(report["seconds"] for report in hosts)
    steps = sum(report["frames_this_run"] for report in hosts)
    return {
        "complete": len(markers) == len(items),
        "items": len(markers),
        "frames": sum(marker["frames"] for marker in markers),
        "failures": sum(len(marker["failed"]) for marker in markers),
        "seconds": seconds,
        "frames_this_run": steps,
        "frames_per_second": round(steps / max(seconds, 1e-3), 3),
        "workers": sum(report["workers"] for report in hosts),
        "hosts": sorted(reports),
        "errors": {key: message for report in hosts for key, message in sorted(report["errors"].items())},
    }


def bar_pace() -> float:
    """Seconds between updates of a progress bar: a log file gets a line every half minute."""
    return 0.1 if sys.stderr.isatty() else 30.0


def _run_workers(items: Sequence[Item], spec: RunSpec, member: Membership, progress: _Progress) -> None:
    shares = partition(items, len(spec.environments))
    events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    workers: list[_Worker] = []
    total = sum(item.steps for item in items)
    with tqdm(total=total, unit="frame", desc=spec.doing, smoothing=0.05, mininterval=bar_pace()) as bar:
        try:
            for index, share in enumerate(shares):
                if share:
                    workers.append(_start(index, share, spec, member, events))
            _watch(workers, events, progress, bar)
        finally:
            _stop(workers)


def _start(
    index: int, share: Sequence[Item], spec: RunSpec, member: Membership, events: queue.Queue[Any]
) -> _Worker:
    # No library is to take a worker for a process of the launcher's group.
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    # Workers inherit the blocked signal: Ctrl-C reaches the whole group, but ending them is the parent's task.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(
            list(spec.worker_command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**inherited, **spec.environments[index]},
            pass_fds=(member.lock,),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    worker = _Worker(index, process, {item.key: item for item in share})
    name = f"{member.host.rank}/{index}"
    job = {"save": str(spec.save), "worker": name, "settings": dict(spec.settings), "groups": to_wire(share)}
    threading.Thread(target=_converse, args=(worker, json.dumps(job) + "\n", events), daemon=True).start()
    return worker


def _converse(worker: _Worker, job: str, events: queue.Queue[Any]) -> None:
    """Thread: send the job, then pass every report on until the worker closes its end."""
    stdin, stdout = worker.process.stdin, worker.process.stdout
    assert stdin is not None
    assert stdout is not None
    try:
        stdin.write(job.encode())
        stdin.flush()
        for line in stdout:
            events.put((worker, json.loads(line)))
    except (BrokenPipeError, json.JSONDecodeError):
        pass  # it died meanwhile, perhaps in mid-line; its exit status tells
    finally:
        events.put((worker, None))


def _watch(workers: Sequence[_Worker], events: queue.Queue[Any], progress: _Progress, bar: Any) -> None:
    running = len(workers)
    failed = 0
    while running:
        worker, event = events.get()
        kind = event["event"] if event else "end"
        if kind == "end":
            running -= 1
            _note_end(worker, progress)
        elif kind == "progress":
            progress.steps += event["steps"]
            failed += event["failed"]
            bar.update(event["steps"])
        elif kind == "done":
            del worker.left[event["key"]]
        elif kind == "error":
            del worker.left[event["key"]]
            progress.errors[event["key"]] = event["message"]
            logger.error("%s: %s", event["key"], event["message"])
        elif kind == "fatal":
            raise InputError(event["message"])
        if failed or progress.errors:
            bar.set_postfix({"no [SEG]": failed, "errors": len(progress.errors)}, refresh=False)


def _note_end(worker: _Worker, progress: _Progress) -> None:
    status = worker.process.wait()
    if status == 0 and not worker.left:
        return
    how = f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
    progress.deaths.append(
        f"worker {worker.index} (process {worker.process.pid}) ended with {how} and {len(worker.left)} items "
        "undone. If memory ran out, use fewer --workers or a lower --precision. What is complete stays; run the "
        "same command again to continue"
    )
    logger.error("%s", progress.deaths[-1])


def _stop(workers: Sequence[_Worker]) -> None:
    """End workers that still run: they leave when their stdin closes."""
    for worker in workers:
        assert worker.process.stdin is not None
        with suppress(BrokenPipeError):
            worker.process.stdin.close()
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
