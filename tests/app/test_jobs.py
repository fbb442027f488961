"""Jobs without a page: from upload to results, in order, cancelled, refused, and nothing left behind."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import EXPRESSIONS, tiny_clip, tiny_glus
from tiny_selector import tiny_selector

from glus.api import GLUS
from glus.app import jobs, words
from glus.app.jobs import Job, Workbench
from glus.app.models import Models
from glus.app.results import Settings
from glus.app.uploads import Limits, read_upload
from glus.config import InferenceConfig
from glus.errors import InputError
from glus.inference.budget import MemoryBudget
from glus.masks import decode_rle
from glus.video import open_frames, write_video
from kfs.frame_scores import best_frame
from kfs.scoring import score_video

SETTINGS = Settings("one", {"context_frames": 1, "query_frames": 1})
FRAMES = 4


class Gate:
    """Loads a model when it is told to; until then the first job runs without getting anywhere."""

    def __init__(self, glus: GLUS) -> None:
        self.open = threading.Event()
        self.loaded: list[str] = []
        self._glus = glus

    def __call__(self, settings: Mapping[str, Any]) -> GLUS:
        assert self.open.wait(30)
        self.loaded.append(settings["version"])
        if settings["version"] == "broken":
            raise ZeroDivisionError("a defect")
        return self._glus


@pytest.fixture(scope="module")
def glus() -> GLUS:
    return tiny_glus()


@pytest.fixture
def gate(glus: GLUS) -> Gate:
    return Gate(glus)


@pytest.fixture
def bench(gate: Gate, tmp_path: Path) -> Iterator[Workbench]:
    root = tmp_path / "root"
    root.mkdir()
    offered = {name: {"version": name} for name in ("one", "two", "broken")}
    workbench = Workbench(root, Models(offered, load=gate), Limits(waiting=2))
    yield workbench
    gate.open.set()
    workbench.close()
    assert not list(root.iterdir())


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", tiny_clip(FRAMES), fps=5)
    return tmp_path / "clip.mp4"


def until(condition: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(3000):
        if condition():
            return
        tick.wait(0.01)
    raise AssertionError("it has not come about in half a minute")


def submit(bench: Workbench, clip: Path, visitor: str, text: str = EXPRESSIONS[0], **changes: Any) -> Job:
    bench.upload(visitor, [clip])
    return bench.submit(visitor, text, Settings(**{**vars(SETTINGS), **changes}))


def test_from_upload_to_results(bench: Workbench, gate: Gate, glus: GLUS, clip: Path) -> None:
    gate.open.set()
    job = submit(bench, clip, "a", "\n".join(EXPRESSIONS[:2]))
    until(lambda: job.ended)
    assert (job.state, job.message) == ("done", "")
    outcome = job.outcome
    assert outcome is not None
    expected = glus.segment(clip, EXPRESSIONS[:2], config=InferenceConfig(1, 1))
    assert np.allclose(outcome.scores, expected.scores, atol=1e-4)
    codes = json.loads(outcome.codes.read_text())
    assert [category["name"] for category in codes["categories"]] == EXPRESSIONS[:2]
    found = {(one["category_id"] - 1, one["image_id"] - 1): one["segmentation"] for one in codes["annotations"]}
    with zipfile.ZipFile(outcome.masks) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        assert names == {f"{row}/{index:05d}.png" for row in range(2) for index in range(FRAMES)}
        for row in range(2):
            for index in range(FRAMES):
                mask = expected.masks[row, index].numpy()
                assert (decode_rle(found.get((row, index)), 40, 56, "codes") == mask).all()
                with archive.open(f"{row}/{index:05d}.png") as file:
                    assert (np.asarray(Image.open(file)) > 0).tolist() == mask.tolist()
    video = open_frames(outcome.video)
    assert (len(video), video.fps, video[0].shape[1]) == (FRAMES, 5, 56)
    assert video[0].shape[0] > 40  # the captions below
    assert [Image.open(path).size for path in outcome.pictures] == [(56, 40)] * FRAMES


def test_jobs_wait_in_order(bench: Workbench, gate: Gate, clip: Path) -> None:
    first = submit(bench, clip, "a")
    until(lambda: first.state == "running")
    second, third = submit(bench, clip, "b"), submit(bench, clip, "c")
    assert [bench.before(job) for job in (first, second, third)] == [0, 1, 2]
    with pytest.raises(InputError, match="your last job is still under way"):
        bench.submit("c", "more", SETTINGS)
    with pytest.raises(InputError, match="your last job is still under way"):
        bench.upload("c", [clip])
    with pytest.raises(InputError, match="2 jobs are waiting already"):
        submit(bench, clip, "d")
    gate.open.set()
    until(lambda: third.ended)
    assert [job.state for job in (first, second, third)] == ["done"] * 3
    assert gate.loaded == ["one"]


def test_cancel_while_waiting_and_while_running(bench: Workbench, gate: Gate, clip: Path) -> None:
    running = submit(bench, clip, "a")
    until(lambda: running.state == "running")
    waiting = submit(bench, clip, "b")
    bench.stop("b")
    assert (waiting.state, bench.before(waiting)) == ("stopped", 0)
    bench.stop("a")
    assert running.state == "running"
    gate.open.set()
    until(lambda: running.ended)
    assert running.state == "stopped"
    assert not running.folder.exists()
    assert not waiting.folder.exists()
    again = bench.submit("a", EXPRESSIONS[0], SETTINGS)  # the upload is still there
    until(lambda: again.ended)
    assert again.state == "done"


def test_cancel_between_frames(bench: Workbench, gate: Gate, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate.open.set()
    seen: list[int] = []
    whole = Job.report

    def report(job: Job, doing: str, done: int, total: int) -> None:
        if doing == "segmenting":
            seen.append(done)
            if done == 2:
                bench.stop("a")
        whole(job, doing, done, total)

    monkeypatch.setattr(Job, "report", report)
    job = submit(bench, clip, "a")
    until(lambda: job.ended)
    assert (job.state, seen) == ("stopped", [1, 2])
    assert not job.folder.exists()


def test_a_defect_ends_one_job(bench: Workbench, gate: Gate, clip: Path) -> None:
    gate.open.set()
    bad = submit(bench, clip, "a", model="broken")
    until(lambda: bad.ended)
    assert (bad.state, bad.message) == ("failed", "something went wrong on this machine; its log says what")
    good = submit(bench, clip, "b", model="two")
    until(lambda: good.ended)
    assert good.state == "done"


def test_what_the_model_refuses_is_told(bench: Workbench, gate: Gate, clip: Path) -> None:
    gate.open.set()
    job = submit(bench, clip, "a", key_frames=True)
    until(lambda: job.ended)
    assert job.state == "failed"
    assert words.ending(job) == words.alert("there is no key-frame selector here; start from the first frame")


def test_one_model_at_a_time(bench: Workbench, gate: Gate, clip: Path) -> None:
    gate.open.set()
    for model in ("one", "two", "two", "one"):
        job = submit(bench, clip, "a", model=model)
        until(lambda job=job: job.ended)
    assert gate.loaded == ["one", "two", "one"]
    with pytest.raises(InputError, match=r"there is no model '\.\./\.\./etc' here; choose one of one, two"):
        submit(bench, clip, "a", model="../../etc")


def test_visitors_are_apart_and_their_files_go(bench: Workbench, gate: Gate, clip: Path) -> None:
    gate.open.set()
    job = submit(bench, clip, "a")
    until(lambda: job.ended)
    one, other = bench.visitor("a"), bench.visitor("b")
    assert one.folder != other.folder
    assert len(one.folder.name) >= 20
    assert one.folder.stat().st_mode & 0o077 == 0
    assert (other.job, other.upload) == (None, None)
    with pytest.raises(InputError, match="there is no video yet"):
        bench.submit("b", "a thing", SETTINGS)
    first = bench.visitor("a").upload
    second = bench.upload("a", [clip])
    assert first is not None
    assert not first.preview.exists()
    assert second.preview.exists()
    again = bench.submit("a", EXPRESSIONS[0], SETTINGS)
    assert not job.folder.exists()
    until(lambda: again.ended)
    bench.leave("a")
    assert not one.folder.exists()
    assert other.folder.exists()


def test_who_leaves_in_the_middle_leaves_nothing(bench: Workbench, gate: Gate, clip: Path) -> None:
    job = submit(bench, clip, "a")
    folder = bench.visitor("a").folder
    until(lambda: job.state == "running")
    bench.leave("a")
    assert folder.exists()  # the job reads from it
    gate.open.set()
    until(lambda: not folder.exists())
    assert job.state == "stopped"


def test_a_clip_that_comes_after_a_job_began_leaves_its_clip_alone(
    bench: Workbench, gate: Gate, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.upload("a", [clip])
    begun: list[Job] = []

    def read(*args: Any) -> Any:  # the visitor does not wait for the second upload
        begun.append(bench.submit("a", EXPRESSIONS[0], SETTINGS))
        return read_upload(*args)

    monkeypatch.setattr(jobs, "read_upload", read)
    with pytest.raises(InputError, match="your last job is still under way"):
        bench.upload("a", [clip])
    assert bench.visitor("a").upload is first
    assert [path.name for path in bench.visitor("a").folder.iterdir()] == [first.preview.parent.name]
    gate.open.set()
    until(lambda: begun[0].ended)
    assert begun[0].state == "done", begun[0].message


def test_tidying(bench: Workbench, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.upload("a", [clip])
    (bench.root / "stray").mkdir()
    (bench.root / "stray" / "clip.mp4").write_bytes(b"x")
    (bench.root / "empty").touch()
    bench.tidy()
    assert len(list(bench.root.iterdir())) == 3  # too new: an upload may be on its way
    bench.tidy(stray_seconds=-1)
    assert [path.name for path in bench.root.iterdir()] == ["visitors"]
    folder = bench.visitor("a").folder
    assert folder.exists()
    now = jobs.time.monotonic()
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now + 61 * 60)
    bench.tidy()
    assert not folder.exists()


def test_results_of_a_long_job_stay_a_while(
    bench: Workbench, gate: Gate, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(bench, clip, "a")
    now = jobs.time.monotonic()
    for minutes in (50, 100):
        monkeypatch.setattr(jobs.time, "monotonic", lambda later=now + 60 * minutes: later)
        bench.tidy()
    gate.open.set()
    until(lambda: job.ended)
    bench.tidy()
    assert job.state == "done", job.message
    assert job.folder.exists()


def test_what_a_visitor_wrote_is_never_markup(clip: Path) -> None:
    evil = '<img src=x onerror="alert(1)">'
    for text in (words.alert(evil), words.note(evil), words.legend([evil], None)):
        assert "<img" not in text
        assert "&lt;img" in text


def test_a_selector_chooses_where_to_start(
    glus: GLUS, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector, root, told = tiny_selector(), tmp_path / "root", []
    root.mkdir()
    settings = Settings("one", {"context_frames": 1, "query_frames": 1}, key_frames=True)
    frames, sentences = open_frames(clip), EXPRESSIONS[:2]
    budgets: list[MemoryBudget] = []
    monkeypatch.setattr(MemoryBudget, "of_free_memory", None)  # a budget was given: nobody asks what is free
    monkeypatch.setattr(MemoryBudget, "of_gib", lambda gib: budgets.append(MemoryBudget(gib << 30)) or budgets[-1])
    models = Models({"one": {}}, "kfs", 1, lambda _: glus, lambda *_: selector)
    job = Job(read_upload([clip], root, Limits()), sentences, settings, tmp_path / "job")
    monkeypatch.setattr(job, "report", lambda *what: told.append(what[0]))
    job.run(models)
    assert budgets == [MemoryBudget(1 << 30)] * 2
    outcome = job.outcome
    assert outcome is not None
    monkeypatch.undo()
    scores = score_video(selector.model, selector.tokenizer, frames, sentences)
    assert outcome.key_frames is not None
    assert [key.scores for key in outcome.key_frames] == scores
    keys = [best_frame(row) for row in scores]
    assert [key.index for key in outcome.key_frames] == keys
    assert any(keys)
    expected = glus.segment(clip, sentences, key_frames=keys, config=InferenceConfig(1, 1))
    assert np.allclose(outcome.scores, expected.scores, atol=1e-4)
    assert list(dict.fromkeys(told)) == [
        "loading the model",
        "choosing key frames",
        "segmenting",
        "drawing",
        "packing",
    ]
    assert f"(key frame {keys[0]}, score {scores[0][keys[0]]:.2f})" in words.legend_of(outcome)
