"""Golden data shared by the conformance tests: found through GLUS_CONFORMANCE, skipped where absent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import kfs_golden
import pytest

from glus.text.tokenizer import GlusTokenizer
from kfs.model import SelectorModel

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def _partial_sets_skip() -> Generator[None]:
    """A set named by GLUS_CONFORMANCE may hold some cases only; the one beside the repository must be whole."""
    try:
        yield
    except FileNotFoundError as error:
        base = os.environ.get("GLUS_CONFORMANCE")
        if base is None or not str(error.filename).startswith(base):
            raise
        pytest.skip(f"this golden set has no {error.filename}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    with _partial_sets_skip():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    with _partial_sets_skip():
        yield


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """Function: name of a set -> its folder; skips the test when the set is not there."""
    base = Path(os.environ.get("GLUS_CONFORMANCE", ROOT.parent / "shared" / "conformance"))

    def find(name: str) -> Path:
        folder = base / name
        if not folder.is_dir():
            pytest.skip(f"no golden set {name!r} in {base} (set GLUS_CONFORMANCE)")
        return folder

    return find


@pytest.fixture(scope="session")
def eval_trees(golden: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The PNG trees (predictions, annotations, DAVIS roots) that the evaluation set's own script writes."""
    out = tmp_path_factory.mktemp("eval_trees")
    subprocess.run([sys.executable, golden("eval") / "materialize.py", out], check=True)
    return out


@pytest.fixture(scope="module")
def kfs_root(golden: Callable[[str], Path]) -> Path:
    return golden("kfs")


@pytest.fixture(scope="module")
def kfs_tokenizer(kfs_root: Path, golden: Callable[[str], Path]) -> GlusTokenizer:
    return kfs_golden.golden_tokenizer(kfs_root, golden("glus"))


@pytest.fixture(scope="module")
def kfs_model(kfs_root: Path) -> SelectorModel:
    """Frozen."""
    return kfs_golden.golden_selector(kfs_root).requires_grad_(False)
