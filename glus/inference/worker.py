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
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from glus.config import InferenceConfig, from_dict
from glus.errors import InputError, OutputError
from glus.inference.items import Item, from_wire
from glus.inference.prefetch import Prefetched
from glus.inference.store import ItemWriter, Store
from glus.inference.writing import BackgroundWriter
from glus.video import FrameSource, ImageFrames

if TYPE_CHECKING:
    from glus.api import GLUS
    from glus.inference.engine import FrameResult

# (frames, expression, key frame) -> results, forward pass first; the later result of a frame counts
Segmenter = Callable[[FrameSource, str, int], "Iterator[FrameResult]"]
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
    )


def load_model(settings: dict[str, Any]) -> Segmenter:
    """The real segmenter."""
    import torch

    from glus.inference.engine import segment_expression

    torch.set_num_threads(settings["threads"])
    config = from_dict(InferenceConfig, settings["inference"], "job")
    glus = load_glus(settings)
    return lambda frames, text, key: segment_expression(glus.model, glus.tokenizer, frames, text, config, key)


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


def process(item: Item, frames: FrameSource, segment: Segmenter, writer: ItemWriter, report: Reporter) -> None:
    """Segment one item and publish its masks."""
    try:
        for result in segment(frames, item.record.text, item.key_frame):
            writer.add(result.frame, result.mask, result.failed)
            report.step(result.failed)
        writer.publish()
    except InputError:
        writer.discard()
        raise


def work(job: dict[str, Any], load: Loader, report: Reporter) -> int:
    """Do all items of `job`; an item with bad input is reported and passed over."""
    store = Store(job["save"])
    try:
        segment = load(job["settings"])
        report.send("ready")
        with BackgroundWriter() as background:
            for group in from_wire(job["groups"]):
                record = group[0].record
                images = ImageFrames([record.frame_path(i) for i in range(len(record))], record.frames)
                with Prefetched(images) as frames:
                    for item in group:
                        try:
                            process(item, frames, segment, store.writer(item, job["worker"], background), report)
                        except OutputError:
                            raise
                        except InputError as error:
                            report.flush()
                            report.send("error", key=item.key, message=str(error))
                        else:
                            report.flush()
                            report.send("done", key=item.key)
    except InputError as error:
        report.send("fatal", message=str(error))
        return 2
    return 0


def _end_with_parent() -> None:
    # os.read, not sys.stdin: a buffered reader blocked in a daemon thread aborts the interpreter's shutdown
    while os.read(0, 4096):
        pass
    os._exit(1)


def main(load: Loader = load_model) -> int:
    """Entry point of a worker process; `load` is replaced by tests only."""
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
    return work(json.loads(line), load, Reporter(channel))


if __name__ == "__main__":
    sys.exit(main())
