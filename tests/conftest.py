"""Shared by all tests: this folder on the import path (for `tiny`), no hub, a small disk, a process group."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from glus.training.launch import Place

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 1 MiB."""
    place = tmp_path / "a disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="session")
def place() -> Place:
    """This process as the only rank; the environment stays as it was, for the processes tests start."""
    pytest.importorskip("deepspeed")
    from glus.training.launch import VARIABLES, join

    before = dict(os.environ)
    joined = join()
    for name in {*VARIABLES, "DS_ACCELERATOR"} - {"LOCAL_RANK"}:  # DeepSpeed asks for that one again and again
        if name in before:
            os.environ[name] = before[name]
        else:
            os.environ.pop(name, None)
    return joined
