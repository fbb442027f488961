"""Visitors, their uploads and their jobs; one job runs at a time, the others wait in the order they came.

No page in here. A visitor is a key that the page makes up, such as the session of a browser tab. Everything of a
visitor lies in one folder with a random name, which goes when the visitor leaves.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from glus.app import results
from glus.app.models import Models
from glus.app.uploads import Limits, Upload, check_work, read_sentences, read_upload
from glus.errors import InputError
from glus.video import select

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "stopped"]
STRAY_SECONDS = 120  # how long files that the page has put beside the visitors' folders are left alone
PAUSE_SECONDS = 20  # between two looks for what can be removed


class Stopped(Exception):
    """Raised in a job that is to end."""


class Job:
    """A clip, sentences and settings on their way.

    Attributes:
        state: waiting, running, and then one of done, failed, stopped.
        doing, done, total: what is being done, and how far it is.
        message: for the visitor, why it failed.
        outcome: what it made, once done.
    """

    def __init__(self, upload: Upload, sentences: list[str], settings: results.Settings, folder: Path) -> None:
        self.upload = upload
        self.sentences = sentences
        self.settings = settings
        self.folder = folder
        self.state: State = "waiting"
        self.doing, self.done, self.total = "", 0, 0
        self.message = ""
        self.outcome: results.Outcome | None = None
        self._stop = threading.Event()

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "stopped")

    def stop(self) -> None:
        """Ask for the end; it comes before the next frame."""
        self._stop.set()

    def report(self, doing: str, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self.doing, self.done, self.total = doing, done, total

    def run(self, models: Models) -> None:
        """Do it. Whatever happens ends here: with a message for the visitor, no half results, and then a state."""
        self.state = "running"
        ended: State = "failed"
        try:
            self._work(models)
            ended = "done"
        except Stopped:
            ended = "stopped"
        except InputError as error:
            self.message = str(error).replace(f"{self.folder.parent}/", "")
        except Exception:  # a job must not take the page down with it
            logger.exception("a job has failed")
            self.message = "something went wrong on this machine; its log says what"
        if ended != "done":
            shutil.rmtree(self.folder, ignore_errors=True)
        self.state = ended

    def _work(self, models: Models) -> None:
        self.report("loading the model", 0, 1)
        glus = models.get(self.settings.model)
        selector = models.selector(glus) if self.settings.key_frames else None
        self.folder.mkdir()
        frames = select(self.upload.open(), fps=self.settings.fps, resize=self.settings.resize)
        self.outcome = results.run(
            glus,
            selector,
            frames,
            self.sentences,
            self.settings,
            self.folder,
            self.report,
            memory_budget=models.memory_budget,
        )


class Visitor:
    """The folder of a visitor, the last upload and the last job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.upload: Upload | None = None
        self.job: Job | None = None
        self.seen = time.monotonic()

    @property
    def busy(self) -> bool:
        return self.job is not None and not self.job.ended


class Workbench:
    """All visitors, and the thread that does their jobs.

    Args:
        root: folder for everything of all visitors; what others leave beside the visitors' folders is removed.
    """

    def __init__(self, root: Path, models: Models, limits: Limits | None = None) -> None:
        self.root = root
        self.models = models
        self.limits = limits or Limits()
        self._home = root / "visitors"
        self._home.mkdir(mode=0o700)
        self._visitors: dict[str, Visitor] = {}
        self._left: list[Visitor] = []
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._change = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._work, self._tidy)]
        for thread in self._threads:
            thread.start()

    def visitor(self, key: str) -> Visitor:
        """The visitor of that key; a new one at the first call."""
        with self._change:
            if key not in self._visitors:
                folder = self._home / secrets.token_urlsafe(16)
                folder.mkdir(mode=0o700)
                self._visitors[key] = Visitor(folder)
            self._visitors[key].seen = time.monotonic()
            return self._visitors[key]

    def upload(self, key: str, sent: Sequence[Path]) -> Upload:
        """Take a clip; it takes the place of an earlier one.

        Raises:
            InputError: see `read_upload`; also while a job of the visitor is under way.
        """
        visitor = self._idle(key)
        folder = visitor.folder / secrets.token_urlsafe(16)
        folder.mkdir()
        try:
            upload = read_upload(sent, folder, self.limits)
            with self._change:
                self._check_idle(visitor)  # a job that was started meanwhile reads from the earlier clip
                old, visitor.upload = visitor.upload, upload
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if old is not None:
            shutil.rmtree(old.preview.parent, ignore_errors=True)
        return upload

    def submit(self, key: str, text: str, settings: results.Settings) -> Job:
        """Put a job on the visitor's clip in the queue; results of an earlier one are removed.

        Raises:
            InputError: no clip, bad sentences, too much at once, a full queue, or a job that is under way.
        """
        visitor = self._idle(key)
        self.models.check(settings.model)
        sentences = read_sentences(text, self.limits)
        with self._change:
            self._check_idle(visitor)
            if visitor.upload is None:
                raise InputError("there is no video yet; upload one, or pick one that is here")
            check_work(visitor.upload, len(sentences), self.limits, settings.resize)
            if len(self._queue) >= self.limits.waiting:
                raise InputError(f"{len(self._queue)} jobs are waiting already; try again in a few minutes")
            job = Job(visitor.upload, sentences, settings, visitor.folder / secrets.token_urlsafe(16))
            old, visitor.job = visitor.job, job
            self._queue.append(job)
            self._change.notify_all()
        if old is not None:
            shutil.rmtree(old.folder, ignore_errors=True)
        return job

    def before(self, job: Job) -> int:
        """How many jobs come before this one."""
        with self._change:
            at = self._queue.index(job) if job in self._queue else -1
            return at + (self._running is not None) if at >= 0 else 0

    def stop(self, key: str) -> None:
        """End the visitor's job, waiting or running."""
        with self._change:
            visitor = self._visitors.get(key)
            if visitor is not None and visitor.job is not None:
                self._end(visitor.job)

    def leave(self, key: str) -> None:
        """End the visitor's job and remove everything; a running job's folder goes when it has ended."""
        with self._change:
            visitor = self._visitors.pop(key, None)
            if visitor is None:
                return
            if visitor.job is not None:
                self._end(visitor.job)
            self._left.append(visitor)
        self._remove_left()

    def close(self) -> None:
        """End everything, and wait for it."""
        with self._change:
            self._closed = True
            for job in [*self._queue, *([self._running] if self._running else [])]:
                self._end(job)
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        shutil.rmtree(self._home, ignore_errors=True)

    def tidy(self, stray_seconds: float = STRAY_SECONDS) -> None:
        """Remove what visitors have left: files of the gone and the idle, and copies that the page keeps."""
        with self._change:
            now = time.monotonic()
            for visitor in self._visitors.values():
                if visitor.busy:  # who waits for a job is not idle, and has time to look at what it made
                    visitor.seen = now
            idle = [key for key, v in self._visitors.items() if v.seen < now - 60 * self.limits.idle_minutes]
        for key in idle:
            self.leave(key)
        self._remove_left()
        for path in self.root.iterdir():
            if path != self._home and time.time() - newest(path) > stray_seconds:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _idle(self, key: str) -> Visitor:
        visitor = self.visitor(key)
        self._check_idle(visitor)
        return visitor

    @staticmethod
    def _check_idle(visitor: Visitor) -> None:
        if visitor.busy:
            raise InputError("your last job is still under way; wait for it, or cancel it")

    def _end(self, job: Job) -> None:
        job.stop()
        if job in self._queue:
            self._queue.remove(job)
            job.state = "stopped"

    def _remove_left(self) -> None:
        with self._change:
            gone = [visitor for visitor in self._left if not visitor.busy]
            self._left = [visitor for visitor in self._left if visitor.busy]
        for visitor in gone:
            shutil.rmtree(visitor.folder, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                self._running = self._queue.popleft()
            self._running.run(self.models)
            with self._change:
                self._running = None
            self._remove_left()

    def _tidy(self) -> None:
        while True:
            with self._change:
                if self._change.wait_for(lambda: self._closed, timeout=PAUSE_SECONDS):
                    return
            self.tidy()


def newest(path: Path) -> float:
    """When a file, or anything in a folder, was changed last, in seconds since the epoch; 0 if it is gone."""
    try:
        return max(entry.lstat().st_ctime for entry in (path, *path.rglob("*")))
    except FileNotFoundError:
        return 0.0
