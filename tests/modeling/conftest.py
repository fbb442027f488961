"""A tiny model and its folders, shared by the tests of checkpoints; tests must not write into them."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import write_clip
from tiny import tiny_glus

from glus.api import GLUS


@pytest.fixture(scope="session")
def glus() -> GLUS:
    return tiny_glus()


@pytest.fixture(scope="session")
def clip(glus: GLUS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"), glus)


@pytest.fixture(scope="session")
def saved(glus: GLUS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    glus.save_pretrained(folder)
    return folder
