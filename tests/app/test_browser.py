"""The page in a real browser, from upload to download.

With GLUS_SCREENSHOTS=<folder> the shipped model runs on a clip of the generator, and pictures of the page are left
in that folder, those of docs/app.md.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_clip, tiny_glus
from tiny_selector import tiny_selector

from glus.api import GLUS
from glus.app.clips import BundledClip, bundled_clips
from glus.app.guard import LARGEST_MESSAGE
from glus.app.jobs import Workbench
from glus.app.models import Models
from glus.app.uploads import Limits
from glus.inference.infer_command import default_checkpoint
from glus.video import write_video

gradio = pytest.importorskip("gradio", reason="the page needs the extra `app`")
from glus.app.page import Page  # noqa: E402 - it imports gradio

SHOTS = os.environ.get("GLUS_SCREENSHOTS")
EVIL = 'the square <img src=x onerror="window.hacked = 1"> <b>bold</b>'
LOCAL = ("http://127.0.0.1", "data:", "blob:")

FAINT = (Path(__file__).parent / "contrast.js").read_text()


class Server:
    """A page with a model that is there when `ready` is set."""

    def __init__(self, root: Path) -> None:
        self.ready = threading.Event()
        self.glus = GLUS.from_pretrained(default_checkpoint(), device="cpu") if SHOTS else tiny_glus()
        (root / "served").mkdir()
        (root / "clips").mkdir()
        if SHOTS:
            self.clips = bundled_clips(root / "clips", 1)
        else:
            write_video(root / "clips" / "square.mp4", tiny_clip(4, 64, 96), fps=4)
            self.clips = {"A square": BundledClip(root / "clips" / "square.mp4", "the red square")}
        models = Models(
            {"glus-tiny": {}},
            None if SHOTS else "a selector",
            load=self.load,
            load_selector=lambda folder, glus: tiny_selector(),
        )
        self.bench = Workbench(root / "served", models, Limits(frames=30))
        self.page = Page(self.bench, self.clips, {"query_frames": 1})
        self.address = self.page.launch("127.0.0.1", None, block=False)

    def load(self, settings: Mapping[str, Any]) -> GLUS:
        assert self.ready.wait(60)
        return self.glus

    def close(self) -> None:
        self.ready.set()
        self.page.blocks.close(verbose=False)
        self.bench.close()

    def get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"{self.address.rstrip('/')}{path}") as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE"):
        monkeypatch.setenv(name, "")  # set by the page, and put back after it
    place = tmp_path / "server"
    place.mkdir()
    server = Server(place)
    yield server
    server.close()


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser test drives Chromium by playwright"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt install chromium, or set CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def until(condition: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(1500):
        if condition():
            return
        tick.wait(0.02)
    raise AssertionError("it has not come about in half a minute")


def download(page: Any, button: str, folder: Path) -> Path:
    with page.expect_download() as coming:
        page.locator(f"#{button}").click()
    path = folder / coming.value.suggested_filename
    coming.value.save_as(path)
    return path


def shot(page: Any, name: str, folder: Path) -> None:
    """A picture of the whole page."""
    place = Path(SHOTS) if SHOTS else folder
    place.mkdir(parents=True, exist_ok=True)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(500)
    page.screenshot(path=place / f"{name}.png", full_page=True)
    assert (place / f"{name}.png").stat().st_size > 10_000


def test_from_upload_to_download(server: Server, browser: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.address)
    box = page.get_by_label("Sentences, one per line")
    expect(box).to_be_visible()
    clip = next(iter(server.clips.values()))

    # a text that is called a video
    (tmp_path / "fake.mp4").write_text("no video at all\n" * 100)
    page.locator("input[type=file]").first.set_input_files(tmp_path / "fake.mp4")
    alert = page.get_by_role("alert").filter(has_text="fake.mp4 is not a video or an image")
    expect(alert).to_be_visible()
    page.locator("input[type=file]").first.set_input_files(clip.path)
    expect(page.get_by_text(f"{clip.path.name}: ")).to_be_visible()

    # no sentence, far too long a one, and then by keyboard
    start, status = page.get_by_role("button", name="Segment"), page.locator("#status")
    start.focus()
    page.keyboard.press("Enter")
    expect(status.get_by_role("alert")).to_contain_text("There is no sentence")
    box.fill("x" * 10_000)
    start.focus()
    page.keyboard.press("Enter")
    expect(status.get_by_role("alert")).to_contain_text("10000 letters, more than 300")
    sentences = clip.sentences if SHOTS else f"{EVIL}\n{clip.sentences}"
    box.fill(sentences)
    start.focus()
    page.keyboard.press("Enter")
    expect(status).to_contain_text("Loading the model")
    expect(start).to_be_disabled()

    # cancelled while the model loads, and once more
    page.get_by_role("button", name="Cancel").click()
    expect(status).to_contain_text("Cancel")
    server.ready.set()
    expect(status).to_contain_text("Cancelled.", timeout=60_000)
    start.click()
    expect(status).to_contain_text("Done.", timeout=60_000)

    legend = page.locator(".glus-legend li")
    assert legend.count() == 2
    if not SHOTS:
        expect(legend.first).to_contain_text(EVIL)
        expect(legend.first).to_contain_text("key frame")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x'], #results b:text('bold')").count() == 0

    # the video plays, the slider shows frames, the curve is drawn
    page.wait_for_function("document.querySelector('#results video')?.readyState >= 2", timeout=20_000)
    assert page.evaluate("document.querySelector('#results video').duration") > 0.5
    picture = page.locator("#results .image-frame img, #results .image-container img").first
    expect(picture).to_have_attribute("src", re.compile(r"00000\.jpg$"))
    slider = page.locator("#frame input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(picture).to_have_attribute("src", re.compile(r"00002\.jpg$"))
    expect(page.locator("#results canvas, #results svg.marks").first).to_be_visible()
    for _ in range(12 if SHOTS else 0):  # to a frame that shows both objects
        page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Options").click()
    shot(page, "page", tmp_path)
    assert page.evaluate(FAINT) == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p style=color:#aaa>faint</p>')")
    assert [text.split()[0] for text in page.evaluate(FAINT)] == ["faint"]

    # downloads are what the job has made
    job = next(iter(server.bench._visitors.values())).job
    assert job is not None
    assert job.outcome is not None
    made = {"get-video": job.outcome.video, "get-masks": job.outcome.masks, "get-codes": job.outcome.codes}
    got = {button: download(page, button, tmp_path) for button in made}
    assert all(path.read_bytes() == made[button].read_bytes() for button, path in got.items())
    assert len(zipfile.ZipFile(got["get-masks"]).namelist()) > 2 * job.upload.frames
    categories = json.loads(got["get-codes"].read_text())["categories"]
    assert [category["name"] for category in categories] == sentences.splitlines()

    # another visitor sees nothing of it, nor of this machine
    other = browser.new_context().new_page()
    other.goto(server.address)
    expect(other.get_by_text("Pick a video and write a sentence.")).to_be_visible()
    expect(other.locator("#results")).to_have_count(0)
    folder = job.folder.parent
    assert server.get(f"/gradio_api/file={job.outcome.video}") == 200  # who knows the random name
    for path in (folder, server.bench.root, clip.path, "/etc/passwd", f"{job.outcome.video}/../../../../../clips"):
        assert server.get(f"/gradio_api/file={path}") == 403, path
    assert [url for url in asked if not url.startswith(LOCAL)] == []

    # closing the tab removes everything of it
    context.close()
    until(lambda: not folder.exists())


def test_a_password_guards_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE"):
        monkeypatch.setenv(name, "")
    bench = Workbench(tmp_path, Models({"tiny": {}}, load=lambda settings: tiny_glus()))
    page = Page(bench, {})
    server = Server.__new__(Server)
    server.address = page.launch("127.0.0.1", None, auth=("user", "secret"), block=False)
    try:
        (tmp_path / "file.txt").write_text("private")
        for path in ("/config", f"/gradio_api/file={tmp_path}/file.txt", "/gradio_api/info"):
            assert server.get(path) == 401, path
        assert server.get("/gradio_api/file=https://example.org/x.mp4") == 403
        login = urllib.request.Request(f"{server.address}login", data=b"username=user&password=wrong")
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(login)
        login.data = b"username=user&password=secret"
        with urllib.request.urlopen(login) as answer:
            cookie = answer.headers["Set-Cookie"].split(";")[0]
        entered = urllib.request.Request(f"{server.address}config", headers={"Cookie": cookie})
        with urllib.request.urlopen(entered) as answer:
            assert answer.status == 200
        # only announced: who sends so much may find the connection closed before there is an answer to read
        with closing(http.client.HTTPConnection(entered.host, timeout=30)) as connection:
            connection.putrequest("POST", "/config")
            connection.putheader("Cookie", cookie)
            connection.putheader("Content-Length", str(LARGEST_MESSAGE + 1))
            connection.endheaders()
            assert connection.getresponse().status == 413
        with pytest.raises(gradio.Error, match="from uploads only"):
            asyncio.run(gradio.File().async_move_resource_to_block_cache("https://example.org/x.mp4"))
    finally:
        page.blocks.close(verbose=False)
        bench.close()
