"""`python -m glus app`: what it refuses, what it offers, and that it ends and cleans up when asked to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from glus.app import command
from glus.app.clips import bundled_clips
from glus.app.models import Models
from glus.data.synthetic.config import SyntheticConfig
from glus.errors import InputError
from glus.video import open_frames


def test_logins() -> None:
    assert command.credentials("me:a:b") == ("me", "a:b")
    assert command.credentials(None) is command.credentials("") is None
    for text in ("me", "me:", ":secret"):
        with pytest.raises(InputError, match="user:password"):
            command.credentials(text)


def test_what_is_local() -> None:
    hosts = {"127.0.0.1": True, "localhost": True, "::1": True, "0.0.0.0": False, "::": False, "a.machine": False}
    assert {host: command.is_local(host) for host in hosts} == hosts


def test_models_are_offered_by_name() -> None:
    argv = ["--version", "/some/where/one/", "--models", "two", "org/three", "--device", "cpu"]
    models = command.offered(command.parser().parse_args(argv))
    assert [(name, entry["version"], entry["device"]) for name, entry in models.items()] == [
        ("one", "/some/where/one/", "cpu"),
        ("two", "two", "cpu"),
        ("three", "org/three", "cpu"),
    ]
    with pytest.raises(InputError, match="two checkpoints are called one"):
        command.offered(command.parser().parse_args(["--version", "a/one", "--models", "b/one"]))
    with pytest.raises(InputError, match="memory budget must be above 0 GiB, found -1"):
        Models(models, memory_budget=-1)


def test_clips_and_what_to_ask_about_them(tmp_path: Path) -> None:
    clips = bundled_clips(tmp_path, 1, SyntheticConfig(width=96, height=80, frames=8))
    (clip,) = clips.values()
    assert len(open_frames(clip.path)) == 8
    assert len(clip.sentences.splitlines()) == 2


def test_it_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs the extra `app`")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "GLUS_APP_AUTH": "me:secret", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "glus", "app", "--clips", "1"]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = re.fullmatch(
                r"GLUS is at (http://127\.0\.0\.1:\d+)/? \(Ctrl-C ends it\)\n", server.stdout.readline()
            )
            assert said
            with urllib.request.urlopen(said[1]) as answer:
                assert answer.status == 200
            assert [path.name for path in tmp_path.glob("glus-app-*/*")] != []
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (0, 130)
    assert list(tmp_path.glob("glus-app-*")) == []
