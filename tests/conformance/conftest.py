"""Golden data shared by the conformance tests: found through GLUS_CONFORMANCE, skipped where absent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


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
