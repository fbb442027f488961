"""J, F, boundaries, A and R of single frames against the goldens, at 1e-10 (counts exactly)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glus.evaluation.bitmask import BitMask, disk
from glus.evaluation.metrics import (
    accuracy_robustness,
    accuracy_robustness_of_values,
    boundary_counts,
    boundary_measure,
    boundary_radius,
    db_eval_boundary,
    db_eval_iou,
    frame_scores,
    jaccard,
)

TOLERANCE = 1e-10


def near(value: float) -> Any:
    return pytest.approx(value, rel=0, abs=TOLERANCE)


def edge_cases(folder: Path) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((folder / "edge" / "masks.json").read_text())["cases"]
    assert cases
    return cases


def test_edge_masks(golden: Callable[[str], Path]) -> None:
    for case in edge_cases(golden("eval")):
        gt, pred = BitMask.from_rle(case["gt"]), BitMask.from_rle(case["pred"])
        void = BitMask.from_rle(case["void"]) if case.get("void") else None
        name = case["name"]
        assert jaccard(gt, pred, void) == near(case["J"]), name
        assert boundary_measure(gt, pred, void) == near(case["F"]), name
        assert frame_scores(gt, pred, void) == near((case["J"], case["F"])), name
        radius = boundary_radius(gt.height, gt.width)
        assert radius == case["radius"], name
        assert 2 * sum(2 * disk(radius) + 1) - (2 * radius + 1) == case["disk_pixels"], name
        if void is not None:
            gt, pred = gt.without(void), pred.without(void)
        counts = boundary_counts(gt, pred, radius)
        assert counts[:2] == (case["n_gt_boundary"], case["n_pred_boundary"]), name
        if 0 not in counts[:2]:
            assert counts[2:] == (case["n_gt_match"], case["n_pred_match"]), name


def test_edge_masks_as_arrays(golden: Callable[[str], Path]) -> None:
    """The functions on arrays, single and stacked; values other than 0 and 1 are foreground as well."""
    for case in edge_cases(golden("eval")):
        gt = BitMask.from_rle(case["gt"]).unpack().astype(np.uint8) * np.uint8(2)
        pred = BitMask.from_rle(case["pred"]).unpack().astype(np.float32) * np.float32(0.5)
        void = BitMask.from_rle(case["void"]).unpack() if case.get("void") else None
        assert db_eval_iou(gt, pred, void) == near(case["J"]), case["name"]
        assert db_eval_boundary(gt, pred, void) == near(case["F"]), case["name"]
        stacked = db_eval_boundary(gt[None], pred[None], None if void is None else void[None])
        assert np.shape(stacked) == (1,)
        assert np.asarray(stacked)[0] == near(case["F"]), case["name"]


def test_every_frame_of_the_real_masks(golden: Callable[[str], Path]) -> None:
    folder = golden("eval")
    expected = json.loads((folder / "expected" / "frame_metrics.json").read_text())
    videos = json.loads((folder / "cases" / "mevis" / "meta_expressions.json").read_text())["videos"]
    masks = json.loads((folder / "cases" / "mevis" / "mask_dict.json").read_text())
    predicted = json.loads((folder / "cases" / "mevis" / "pred_rle.json").read_text())
    assert expected
    for video, expressions in expected.items():
        for exp_id, values in expressions.items():
            for t, (j, f) in enumerate(zip(values["J"], values["F"], strict=True)):
                gt = BitMask.zeros(videos[video]["height"], videos[video]["width"])
                for anno in videos[video]["expressions"][exp_id]["anno_id"]:
                    if masks[str(anno)][t] is not None:
                        gt = gt | BitMask.from_rle(masks[str(anno)][t])
                pred = BitMask.from_rle(predicted[video][exp_id][t])
                assert frame_scores(gt, pred) == near((j, f)), (video, exp_id, t)


def test_accuracy_and_robustness(golden: Callable[[str], Path]) -> None:
    cases = json.loads((golden("eval") / "edge" / "accuracy_robustness.json").read_text())["cases"]
    assert cases
    for case in cases:
        encodings = [key for key, value in case.items() if isinstance(value, dict)]
        assert "binary" in encodings
        for t in range(len(case["gt"])):
            gt, pred, foreground = (np.array(case[key][t], np.uint8) for key in ("gt", "pred", "foreground"))
            for encoding in encodings:
                want = case[encoding]["accuracy"][t], case[encoding]["robustness"][t]
                if encoding == "binary":
                    found = accuracy_robustness(*map(BitMask.pack, (gt, pred, foreground)))
                else:
                    values = (pred > 0).astype(np.uint8) * np.uint8(encoding.removeprefix("gray"))
                    found = accuracy_robustness_of_values(gt, values, BitMask.pack(foreground))
                assert found == near(want), encoding
