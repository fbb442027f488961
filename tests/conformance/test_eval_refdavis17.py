"""Ref-DAVIS17 by the four-annotator protocol, on the trees that the fixtures' own script writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_eval_davis import TOLERANCE, check_davis

from glus.evaluation.expression_files import Predictions
from glus.evaluation.four_annotators import annotator_datasets, evaluate_four_annotators
from glus.masks import decode_rle

Golden = Callable[[str], Path]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def datasets(golden: Golden, eval_trees: Path, predictions: Path | None = None) -> Any:
    predictions = predictions or eval_trees / "refdavis_pred"
    expressions = golden("eval") / "cases/refdavis/meta_expressions.json"
    return annotator_datasets(eval_trees / "davis_ref", expressions, Predictions(predictions))


@pytest.mark.parametrize("encoding", ["png", "rle"])
def test_four_annotators(golden: Golden, eval_trees: Path, encoding: str) -> None:
    expected = read(golden("eval") / "expected/refdavis17.json")
    predictions = golden("eval") / "cases/refdavis/pred_rle.json" if encoding == "rle" else None
    scores = evaluate_four_annotators(datasets(golden, eval_trees, predictions), workers=1)
    assert scores.totals == pytest.approx(expected["mean_over_annotators"], abs=TOLERANCE)
    assert len(scores.annotators) == len(expected["annotators"])
    for annotator, wanted in zip(scores.annotators, expected["annotators"].values(), strict=True):
        check_davis(annotator, wanted)


def test_merged_maps(golden: Golden, eval_trees: Path) -> None:
    expected = read(golden("eval") / "expected/refdavis17_merged_rle.json")
    assert expected
    parts = datasets(golden, eval_trees)
    for annotator, videos in expected.items():
        sequences = {s.name: s for s in parts[int(annotator.removeprefix("anno_"))].sequences}
        for video, frames in videos.items():
            source = sequences[video].prediction
            for name, objects in zip(source.names(), frames, strict=True):
                labels = source.read(name, [])
                assert labels is not None
                assert set(np.unique(labels)) <= {0, *(int(k) for k in objects)}
                for label, rle in objects.items():
                    np.testing.assert_array_equal(labels == int(label), decode_rle(rle, *labels.shape, name))
