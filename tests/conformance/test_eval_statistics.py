"""Sequence statistics, image-level metrics and merging against recorded results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glus.evaluation.image_level import MaskIoU, best_scored, precision_at_k
from glus.evaluation.labels import merge_objects
from glus.evaluation.statistics import decay_edges, statistics
from glus.masks import decode_rle

Golden = Callable[[str], Path]
TOLERANCE = 1e-10


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def number(value: float | None) -> float:
    return math.nan if value is None else value


def wanted(case: dict[str, Any]) -> Any:
    values = [number(case[k]) for k in ("mean", "recall", "decay")]
    return pytest.approx(values, abs=TOLERANCE, nan_ok=True)


def test_statistics(golden: Golden) -> None:
    """The original's 8-bit edges everywhere; the correct ones equal them up to 255 frames."""
    cases = read(golden("eval") / "edge/statistics.json")["cases"]
    assert cases
    for case in cases:
        values = [number(v) for v in case["values"]]
        assert decay_edges(len(values), uint8_edges=True) == case["bin_edges"]
        assert statistics(values, uint8_edges=True).as_list() == wanted(case)
        if len(values) <= 255:
            assert statistics(values).as_list() == wanted(case)


def test_statistics_of_long_sequences(golden: Golden) -> None:
    cases = read(golden("eval") / "edge/statistics.json")["more_than_256_frames"]
    assert cases
    for case in cases:
        values = [number(v) for v in case["values"]]
        assert decay_edges(len(values), uint8_edges=True) == case["original"]["bin_edges"]
        assert statistics(values, uint8_edges=True).as_list() == wanted(case["original"])
        assert decay_edges(len(values)) == case["corrected"]["bin_edges"]
        assert statistics(values).decay == pytest.approx(case["corrected"]["decay"], abs=TOLERANCE)


def decode(rle: dict[str, Any]) -> np.ndarray:
    return decode_rle(rle, *rle["size"], "golden")


def test_giou_and_ciou(golden: Golden) -> None:
    expected = read(golden("eval") / "edge/image_level.json")["giou_ciou"]
    half, rest = MaskIoU(), MaskIoU()
    for i, sample in enumerate(expected["samples"]):
        for gt, pred, ignore in zip(sample["gt"], sample["pred"], sample["ignore"], strict=True):
            (half if i % 2 else rest).add(decode(pred), decode(gt), decode(ignore))
    half.merge(rest)
    assert half.count == expected["number_of_masks"]
    assert half.ciou == pytest.approx(expected["ciou"], abs=expected["tolerance"])
    assert half.giou() == pytest.approx(expected["giou"], abs=expected["tolerance"])
    reduced = half.giou(after_reduction=True)
    assert reduced == pytest.approx(expected["giou_after_all_reduce"], abs=expected["tolerance"])


def test_precision_at_k(golden: Golden) -> None:
    expected = read(golden("eval") / "edge/image_level.json")["precision_at_k"]
    pairs = []
    for case in expected["cases"]:
        masks = [decode(p["segmentation"]) for p in case["pred"]]
        pairs.append((best_scored(masks, [p["score"] for p in case["pred"]]), decode(case["gt"])))
    found = precision_at_k(pairs, expected["thresholds"])
    for key in ("precision", "overall_iou", "mean_iou"):
        assert found[key] == pytest.approx(expected[key], abs=expected["tolerance"])


def test_soft_merge(golden: Golden) -> None:
    with np.load(golden("eval") / "edge/soft_merge.npz") as data:
        scores, labels = data["scores"], data["labels"]
    assert len(scores)
    for frame in range(scores.shape[1]):
        np.testing.assert_array_equal(merge_objects(list(scores[:, frame])), labels[frame])
