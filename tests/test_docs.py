"""What the documents name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PLACES = r"(?:glus|tests|utils|scripts|benchmarks|configs|docs|checkpoints)/[\w./-]*[\w-]"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    named = set(re.findall(rf"(?<![\w/.]){PLACES}(?![\w*])", document.read_text()))
    assert not sorted(name for name in named if not (ROOT / name).exists())


def test_every_defect_names_tests_that_exist() -> None:
    rows = [line for line in (ROOT / "docs" / "fidelity.md").read_text().splitlines() if "::" in line]
    assert len(rows) > 20
    for row in rows:
        path = ""
        for file, name in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", row):
            path = file or path
            assert f"\ndef {name}(" in (ROOT / path).read_text(), (path, name)
