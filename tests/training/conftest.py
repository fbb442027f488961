"""The one process group of a test process."""

from __future__ import annotations

import os

import pytest

from glus.training.launch import VARIABLES, Place, join


@pytest.fixture(scope="session")
def place() -> Place:
    """This process as the only rank; the environment stays as it was, for the processes tests start."""
    pytest.importorskip("deepspeed")
    before = dict(os.environ)
    joined = join()
    for name in {*VARIABLES, "DS_ACCELERATOR"} - {"LOCAL_RANK"}:  # DeepSpeed asks for that one again and again
        if name in before:
            os.environ[name] = before[name]
        else:
            os.environ.pop(name, None)
    return joined
