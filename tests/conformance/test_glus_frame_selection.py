"""Context frames and pass order against `glus/frame_selection.json`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glus.inference.selection import context_frames, passes


@pytest.fixture(scope="module")
def data(golden: Callable[[str], Path]) -> dict[str, Any]:
    return json.loads((golden("glus") / "frame_selection.json").read_text())


def test_context_frames(data: dict[str, Any]) -> None:
    assert data["context"]
    for frames, count, indices in data["context"]:
        assert context_frames(frames, count) == indices, (frames, count)


def test_passes(data: dict[str, Any]) -> None:
    assert data["key_frame"]
    for case in data["key_frame"]:
        ours = passes(case["frames"], case["key"])
        assert ours == [one["query"] for one in case["passes"]], case
        for one in case["passes"]:
            assert context_frames(case["frames"], case["context"]) == one["context"], case
