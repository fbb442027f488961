"""Sequence statistics and image-level metrics by hand-made examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from glus.evaluation.image_level import MaskIoU, best_scored, precision_at_k
from glus.evaluation.statistics import Statistics, dataset_means, decay_edges, statistics


@pytest.mark.parametrize("count", [1, 2, 5, 257, 1000])
def test_bins_cover_the_sequence(count: int) -> None:
    edges = decay_edges(count)
    assert edges[0] == 0
    assert edges[-1] == count - 1
    assert edges == sorted(edges)


def test_decay_of_a_long_fall_is_a_number() -> None:
    values = np.linspace(1, 0, 1001)
    assert statistics(values).decay == pytest.approx(0.75)
    assert statistics([0.5, math.nan, 1.0]).as_list() == pytest.approx([0.75, 1 / 3, -0.5], nan_ok=True)


def test_recall_is_strict() -> None:
    assert statistics([0.5, 0.5000001]).recall == 0.5


def test_statistics_need_frames() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        statistics([])


def test_dataset_means_weigh_objects_not_sequences() -> None:
    region = {"a_1": Statistics(1, 1, 0), "a_2": Statistics(0, 0, 0), "b_1": Statistics(0.5, 1, 0.3)}
    boundary = {name: Statistics(0.2, 0.5, 0.1) for name in region}
    means = dataset_means(region, boundary)
    assert means["J-Mean"] == 0.5
    assert means["J&F-Mean"] == pytest.approx(0.35)
    assert means["J-Decay"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="at least one object"):
        dataset_means(region, {})


def mask(*pixels: int) -> np.ndarray:
    flat = np.zeros(6, np.bool_)
    flat[list(pixels)] = True
    return flat.reshape(2, 3)


def test_ignored_pixels_count_for_neither() -> None:
    meter = MaskIoU()
    meter.add(mask(0, 1, 5), mask(0, 2, 5), ignore=mask(2, 5))
    assert (meter.intersection, meter.union) == (1, 2)
    meter.add(mask(), mask())
    assert meter.giou() == pytest.approx((0.5 + 1) / 2, abs=1e-5)
    assert meter.ciou == pytest.approx(0.5)
    with pytest.raises(ValueError, match="shapes differ"):
        meter.add(mask(), np.zeros((3, 2), np.bool_))


def test_precision_counts_strictly_above() -> None:
    found = precision_at_k([(mask(0), mask(0, 1)), (mask(0, 1), mask(0, 1))], thresholds=[0.4, 0.9])
    assert found["precision"] == [1.0, 0.5]
    assert found["overall_iou"] == 0.75
    with pytest.raises(ValueError, match="at least one sample"):
        precision_at_k([])


def test_best_scored_takes_the_first_of_equals() -> None:
    masks = [mask(0), mask(1), mask(2)]
    assert best_scored(masks, [0.2, 0.9, 0.9]) is masks[1]
