"""What one run has to do, and how it is shared out: items of (video, expression), checked and partitioned."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glus.data.records import Record, missing_files
from glus.errors import InputError

RESERVED = re.compile(
    r"\.glus|(summary(-\d+)?|key_frames|key_frame_scores)\.json"
)  # what the run itself keeps in the output folder


@dataclass(frozen=True)
class Item:
    """One unit of work: an expression of a video, and the index of the frame to start from (0: forward only)."""

    record: Record
    key_frame: int = 0

    @property
    def key(self) -> str:
        return f"{self.record.video}/{self.record.exp_id}"

    @property
    def steps(self) -> int:
        """Frames to process: the key frame counts twice."""
        return len(self.record) + (self.key_frame > 0)

    def mask_folder(self, save: Path) -> Path:
        """Where its masks lie: `<save>/<video>/<exp_id>`."""
        return save / self.record.video / self.record.exp_id


def check_items(items: Sequence[Item]) -> None:
    """Raise an `InputError` unless every item can have an output folder of its own."""
    if not items:
        raise InputError("nothing to do: the data set lists no expressions")
    folders: set[tuple[str, ...]] = set()
    for item in items:
        parts = tuple(item.key.split("/"))
        if parts in folders:
            raise InputError(f"the data set lists video and expression {item.key!r} twice")
        if RESERVED.fullmatch(parts[0]):
            raise InputError(
                f"video name {item.record.video!r} is reserved for the run's own records; rename the video"
            )
        folders.add(parts)
    for parts in folders:
        if any(parts[:n] in folders for n in range(1, len(parts))):
            raise InputError(f"the masks of {'/'.join(parts)} would lie inside those of another expression")


def items_without_files(items: Sequence[Item]) -> dict[str, str]:
    """For each item (by key) that lacks frame files: a message naming the first."""
    absent = set(missing_files(item.record for item in items))
    faults: dict[str, str] = {}
    for item in items if absent else ():
        lacking = [path for path in map(item.record.frame_path, range(len(item.record))) if path in absent]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            faults[item.key] = f"frame file not found: {lacking[0]}{more}"
    return faults


def partition(items: Sequence[Item], workers: int) -> list[list[Item]]:
    """Share `items` among `workers`, the same way for the same input, whatever its order.

    Expressions of one video stay together as far as balance allows, because they share frame features:
    longest-processing-time-first over pieces of a video that are at most a quarter of a fair share (or a
    single item). Some shares are empty if there are fewer pieces than workers.
    """
    by_video: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda i: i.key):
        by_video[item.record.video].append(item)
    limit = sum(item.steps for item in items) / (4 * workers)
    pieces: list[list[Item]] = []
    for group in by_video.values():
        cost = limit
        for item in group:
            if cost + item.steps > limit:
                pieces.append([])
                cost = 0
            pieces[-1].append(item)
            cost += item.steps
    pieces.sort(key=lambda piece: (-sum(i.steps for i in piece), piece[0].key))
    loads = [(0, worker) for worker in range(workers)]
    shares: list[list[Item]] = [[] for _ in range(workers)]
    for piece in pieces:
        load, worker = heapq.heappop(loads)
        shares[worker].extend(piece)
        heapq.heappush(loads, (load + sum(i.steps for i in piece), worker))
    return [sorted(share, key=lambda i: i.key) for share in shares]


def items_digest(items: Iterable[Item]) -> str:
    """SHA-256 over what decides the masks of the items besides pixels and model; independent of their order."""
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda i: i.key):
        record = item.record
        entry = [record.dataset, record.video, record.exp_id, record.text, record.frames, item.key_frame]
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


def to_wire(items: Sequence[Item]) -> list[dict[str, Any]]:
    """JSON form of `items`; what a video's expressions share is written once per run of such items."""
    groups: list[dict[str, Any]] = []
    for item in items:
        record = item.record
        shared = {"dataset": record.dataset, "video": record.video, "frames": list(record.frames)}
        shared["frame_folder"] = str(record.frame_folder)
        if not groups or any(groups[-1][name] != value for name, value in shared.items()):
            groups.append({**shared, "expressions": []})
        groups[-1]["expressions"].append([record.exp_id, record.text, item.key_frame])
    return groups


def from_wire(groups: Iterable[dict[str, Any]]) -> list[list[Item]]:
    """Items from `to_wire`'s form, grouped by video as they were sent."""
    return [[_item(group, *expression) for expression in group["expressions"]] for group in groups]


def _item(group: dict[str, Any], exp_id: str, text: str, key_frame: int) -> Item:
    folder, frames = Path(group["frame_folder"]), tuple(group["frames"])
    return Item(Record(group["dataset"], group["video"], exp_id, text, frames, folder), key_frame)
