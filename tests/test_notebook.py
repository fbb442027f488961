"""demo.ipynb runs from top to bottom on the shipped model, and what it shows is kept in it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat", reason="notebooks need nbclient and ipykernel")
nbclient = pytest.importorskip("nbclient", reason="notebooks need nbclient and ipykernel")

ROOT = Path(__file__).resolve().parents[1]


def shown(notebook: Any) -> list[list[str]]:
    """Kinds of what each code cell shows."""
    kinds = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            data = [output.get("data", {}) for output in cell.outputs]
            kinds.append(sorted(kind for entry in data for kind in entry if kind.startswith("image/")))
    return kinds


def test_it_runs_and_shows_what_it_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = nbformat.read(ROOT / "demo.ipynb", as_version=4)
    run = nbformat.read(ROOT / "demo.ipynb", as_version=4)
    monkeypatch.setenv("OUT_DIR", str(tmp_path))
    nbclient.NotebookClient(run, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert shown(run) == shown(kept)
    pictures = [kinds for kinds in shown(run) if kinds]
    assert pictures == [["image/png"], ["image/png"], ["image/svg+xml"], ["image/png"]]
    for cell in run.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 100  # not blank
    for name in ("masks/0/00000.png", "masks.json", "cutouts/1/00000.png", "overlay.mp4"):
        assert (tmp_path / name).stat().st_size > 0
