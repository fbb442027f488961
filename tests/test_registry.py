"""`python -m glus models`: every entry says where it is from and under what terms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glus import registry
from glus.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


def test_every_entry_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert (
        len({entry["name"] for entry in entries})
        == len(entries)
        == len(registry.WEIGHTS) + len(registry.bundled())
    )
    for entry in entries:
        assert f"{entry['name']}: {entry['role']}" in shown
        assert entry["source"] in shown
        assert entry["licence"] or "never published" in entry["source"]
        for name, value in entry["scores"].items():
            assert f"{name} {value:.1f}" in shown


def test_bundled_weights_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    bundled = {one.name: one for one in registry.bundled()}
    tiny = bundled["glus-tiny"]
    size = (ROOT / "checkpoints" / "glus-tiny" / "model.safetensors").stat().st_size
    assert tiny.bytes == size
    assert tiny.files == {"model.safetensors": registry.megabytes(size)}
    assert registry.megabytes(21_534_092) == "21.5 MB"
    assert registry.megabytes(14_454_343_880) == "14.45 GB"


def test_the_readme_names_weights_as_the_registry_does() -> None:
    readme = (ROOT / "README.md").read_text() + (ROOT / "NOTICE").read_text()
    for one in registry.WEIGHTS:
        if one.source.startswith("Swindl/"):
            assert one.name in readme
    assert "sam2_hiera_large.pt" in readme
