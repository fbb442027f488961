"""One inference process: takes a job as a JSON line on stdin, reports JSON lines on stdout (see `runner`).

Reports: `{"event": "ready"}`, `{"event": "progress", "steps": n, "failed": k}`, `{"event": "done", "key": ...}`,
`{"event": "error", "key": ..., "message": ...}` for an item that cannot be done, and `{"event": "fatal",
"message": ...}` when nothing further can succeed. stdin stays open as long as the parent lives; when it ends,
the worker ends at once, so a killed run leaves no one writing.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from glus.config import InferenceConfig, from_dict
from glus.errors import InputError, OutputError
from glus.inference.items import Item, from_wire
from glus.inference.queries import Query
from glus.inference.store import FrameWriter, Store
from glus.inference.writing import BackgroundWriter
from glus.video import FrameSource, ImageFrames

if TYPE_CHECKING:
    from glus.api import GLUS
    from glus.inference.queries import FrameResult

# (frames, queries) -> number of the query and a result of it that the store's writers take, or why it has none
# and no more will come. Of one query, the later result of a frame counts. An error that is raised is about the
# video.
Segmenter = Callable[[FrameSource, Sequence[Query]], "Iterator[tuple[int, Any | InputError]]"]
Loader = Callable[[dict[str, Any]], Segmenter]

REPORT_SECONDS = 0.2


def load_glus(settings: Mapping[str, Any]) -> GLUS:
    """The model that `settings` describe (see `infer_command.model_settings`)."""
    from glus.api import GLUS

    return GLUS.from_pretrained(
        settings["version"],
        dtype=settings["precision"],
        device=settings["device"],
        compat=settings["compat"],
        vision_tower=settings["vision_tower"],
        image_size=settings["image_size"],
        bits=settings["bits"],
        attention=settings["attention"],
        compiled=settings["compile"],
    )


def load_model(settings: dict[str, Any]) -> Segmenter:
    """The real segmenter."""
    import torch

    from glus.inference import engine, reference
    from glus.inference.budget import MemoryBudget
    from glus.inference.queries import open_dialog

    torch.set_num_threads(settings["threads"])
    budget = MemoryBudget.of_gib(settings["memory_budget"]) if settings["memory_budget"] else None
    glus = load_glus(settings)
    config = from_dict(InferenceConfig, {**asdict(glus.config.inference), **settings["inference"]}, "job")
    plain = settings["schedule"] == "reference"
    schedule = reference.segment_clip if plain else partial(engine.segment_clip, budget=budget)

    def segment(frames: FrameSource, queries: Sequence[Query]) -> Iterator[tuple[int, FrameResult | InputError]]:
        good: list[int] = []
        for row, query in enumerate(queries):
            try:
                open_dialog(glus.config, glus.tokenizer, query, config, len(frames))
                good.append(row)
            except InputError as error:
                yield row, error
        chosen = [queries[row] for row in good]
        for number, result in schedule(glus.model, glus.tokenizer, frames, chosen, config):
            yield good[number], result

    return segment


class Reporter:
    """Writes reports to the parent; steps are summed up so that a fast model does not flood the pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._steps = 0
        self._failed = 0
        self._last = 0.0

    def send(self, event: str, **facts: Any) -> None:
        os.write(self._descriptor, (json.dumps({"event": event, **facts}) + "\n").encode())

    def step(self, failed: bool) -> None:
        self._steps += 1
        self._failed += failed
        if time.monotonic() - self._last >= REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._steps:
            self.send("progress", steps=self._steps, failed=self._failed)
        self._steps = self._failed = 0
        self._last = time.monotonic()


class Group:
    """The items of one video, on their way through the model together."""

    def __init__(self, items: Sequence[Item], writer: Callable[[Item], FrameWriter], report: Reporter) -> None:
        self._report = report
        self._writers = {row: writer(item) for row, item in enumerate(items)}
        self._left = {row: item.steps for row, item in enumerate(items)}
        self._items = items

    def run(self, results: Iterator[tuple[int, Any | InputError]]) -> None:
        """Write what comes; an item is published with its last result, and one that cannot be done passed over."""
        try:
            for row, result in results:
                if isinstance(result, InputError):
                    self._give_up(row, result)
                else:
                    self._add(row, result)
        except OutputError:
            raise
        except InputError as error:  # of the video: it costs all items that are not complete
            for row in list(self._writers):
                self._give_up(row, error)

    def _add(self, row: int, result: Any) -> None:
        self._report.step(self._writers[row].take(result))
        self._left[row] -= 1
        if not self._left[row]:
            self._writers.pop(row).publish()
            self._report.flush()
            self._report.send("done", key=self._items[row].key)

    def _give_up(self, row: int, error: InputError) -> None:
        self._writers.pop(row).discard()
        self._report.flush()
        self._report.send("error", key=self._items[row].key, message=str(error))


def work(job: dict[str, Any], load: Loader, report: Reporter, kind: type[Store] = Store) -> int:
    """Do all items of `job`; an item with bad input is reported and passed over."""
    store = kind(job["save"])
    try:
        segment = load(job["settings"])
        report.send("ready")
        with closing(BackgroundWriter()) as background:
            for items in from_wire(job["groups"]):
                record = items[0].record
                frames = ImageFrames([record.frame_path(i) for i in range(len(record))], record.frames)
                group = Group(items, lambda item: store.writer(item, job["worker"], background), report)
                group.run(segment(frames, [Query(item.record.text, item.key_frame) for item in items]))
    except InputError as error:
        report.send("fatal", message=str(error))
        return 2
    return 0


def _end_with_parent() -> None:
    # os.read, not sys.stdin: a buffered reader blocked in a daemon thread aborts the interpreter's shutdown
    while os.read(0, 4096):
        pass
    os._exit(1)


def main(load: Loader = load_model, kind: type[Store] = Store) -> int:
    """Entry point of a worker process that fills a folder of a `kind` with what `load` makes of frames."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 20)
        if not part:
            return 1
        line += part
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Libraries may print; the parent's channel must carry reports only.
    channel = os.dup(1)
    os.dup2(2, 1)
    return work(json.loads(line), load, Reporter(channel), kind)


if __name__ == "__main__":
    sys.exit(main())
