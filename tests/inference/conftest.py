"""The inference command on a small data set, with a stand-in for the model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from run_support import FAKE_RUN, DataSet, Ended, Launch


@pytest.fixture
def dataset(tmp_path: Path) -> DataSet:
    videos = {
        "boats": ([f"{i:05d}" for i in range(7)], {"0": "the red boat", "1": "the boat unseen", "2": "a sail"}),
        "cats": ([f"{i:05d}" for i in range(0, 45, 5)], {"0": "the black cat", "1": "the cat that runs"}),
        "still": (["frame_3"], {"0": "the one thing"}),
        "dogs": ([f"{i:05d}" for i in range(5)], {str(i): f"dog number {i}" for i in range(4)}),
    }
    return DataSet(tmp_path / "data", videos).write()


@pytest.fixture
def launch(dataset: DataSet, tmp_path: Path) -> Launch:
    """Start the command on `dataset`; `save` is the output folder below the test's own."""

    def start(
        *extra: str,
        save: str | Path = "out",
        seconds: float = 0.0,
        workers: int = 2,
        command: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        argv = [
            *(command or (sys.executable, str(FAKE_RUN))),
            *("--version", "fake", "--device", "cpu", "--workers", str(workers)),
            *("--dataset_dir", str(dataset.root), "--vis_save_path", str(tmp_path / save), *extra),
        ]
        environment = {**os.environ, "GLUS_FAKE_SECONDS": str(seconds), **(variables or {})}
        return subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    return start


@pytest.fixture
def run(launch: Launch) -> Callable[..., Ended]:
    """`launch`, waited for."""

    def finish(*extra: str, **how: Any) -> Ended:
        process = launch(*extra, **how)
        out, err = process.communicate(timeout=120)
        return Ended(process.returncode, out, err)

    return finish
