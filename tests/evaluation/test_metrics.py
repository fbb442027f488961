"""The bit-packed core against the definition, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from definition import boundary, random_mask, region
from numpy.typing import NDArray

from glus.errors import InputError
from glus.evaluation.bitmask import BitMask
from glus.evaluation.metrics import (
    accuracy_robustness,
    accuracy_robustness_of_values,
    boundary_measure,
    boundary_radius,
    db_eval_boundary,
    db_eval_iou,
    frame_scores,
    jaccard,
)
from glus.masks import encode_rle

SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 63), (5, 64), (6, 65), (40, 127), (33, 128), (21, 200), (90, 150)]


def cases(seed: int, repeats: int) -> Any:
    rng = np.random.default_rng(seed)
    for height, width in SIZES:
        for _ in range(repeats):
            yield rng, random_mask(rng, height, width), random_mask(rng, height, width)


def test_scores_equal_the_definition() -> None:
    for rng, gt, pred in cases(0, 12):
        void = random_mask(rng, *gt.shape) if rng.random() < 0.5 else None
        packed = BitMask.pack(gt), BitMask.pack(pred), None if void is None else BitMask.pack(void)
        want = region(gt, pred, void), boundary(gt, pred, void)
        assert (jaccard(*packed), boundary_measure(*packed)) == want
        assert frame_scores(*packed) == want


@pytest.mark.parametrize("radius", [1, 2, 5, 30, 31, 32, 33, 70, 200])
def test_any_radius(radius: int) -> None:
    """Up to 31 a window fits one word, above it does not: both ways give the definition."""
    for _, gt, pred in cases(radius, 2):
        want = boundary(gt, pred, bound_th=radius)
        assert boundary_measure(BitMask.pack(gt), BitMask.pack(pred), bound_th=radius) == want


def test_radius_of_whole_diagonals() -> None:
    """0.008 of these diagonals is a whole number, and rounding must not add one."""
    sizes = {(75, 100): 1, (150, 200): 2, (225, 300): 3, (300, 400): 4, (375, 500): 5, (600, 800): 8}
    for (height, width), radius in sizes.items():
        assert boundary_radius(height, width) == boundary_radius(width, height) == radius
    assert [boundary_radius(480, w) for w in (848, 854, 910, 1152)] == [8, 8, 9, 10]
    assert boundary_radius(2160, 3840) == 36


@pytest.mark.parametrize("bound_th", [0, -0.1, 2.5])
def test_odd_radius_is_refused(bound_th: float) -> None:
    with pytest.raises(ValueError):
        boundary_radius(10, 10, bound_th)


def test_packing_in_and_out() -> None:
    for rng, mask, _ in cases(3, 4):
        packed = BitMask.pack(mask)
        assert np.array_equal(packed.unpack(), mask)
        assert packed.area() == mask.sum()
        assert BitMask.from_rle(encode_rle(mask)) == packed
        for values in (
            mask * rng.integers(1, 256, mask.shape, dtype=np.uint8),
            mask * 0.25,
            mask * -3,
            mask.T.copy().T,
        ):
            assert BitMask.pack(values) == packed


def test_set_operations() -> None:
    for _, a, b in cases(4, 2):
        packed = BitMask.pack(a), BitMask.pack(b)
        assert (packed[0] | packed[1]) == BitMask.pack(a | b)
        assert (packed[0] & packed[1]) == BitMask.pack(a & b)
        assert packed[0].without(packed[1]) == BitMask.pack(a & ~b)


def test_label_maps_are_split_in_one_pass() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 7, (30, 130)).astype(np.uint8)
    labels[3] = 255
    ids = [5, 1, 255, 9]
    for value, mask in zip(ids, BitMask.split(labels, ids), strict=True):
        assert mask == BitMask.pack(labels == value)


def test_sizes_must_agree() -> None:
    a, b = BitMask.zeros(4, 5), BitMask.zeros(5, 4)
    for function in (jaccard, boundary_measure, frame_scores):
        with pytest.raises(ValueError, match="4x5 and 5x4"):
            function(a, b)
    with pytest.raises(ValueError):
        db_eval_iou(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError):
        BitMask.pack(np.zeros((2, 2, 2)))


def test_stacks_of_arrays() -> None:
    rng = np.random.default_rng(6)
    gt, pred = (np.stack([random_mask(rng, 20, 70) for _ in range(5)]) for _ in range(2))
    pairs = list(zip(gt, pred, strict=True))
    assert np.array_equal(db_eval_iou(gt, pred), [region(*p) for p in pairs])
    assert np.array_equal(db_eval_boundary(gt, pred), [boundary(*p) for p in pairs])


RLE_FAULTS: dict[str, Any] = {
    "no mapping": "P5",
    "no counts": {"size": [4, 5]},
    "no size": {"counts": "d0"},
    "size of text": {"size": ["4", "5"], "counts": "d0"},
    "size zero": {"size": [0, 5], "counts": "d0"},
    "size of one": {"size": [4], "counts": "d0"},
    "counts of a number": {"size": [4, 5], "counts": 20},
    "too short": {"size": [4, 5], "counts": "c0"},
    "too long": {"size": [4, 5], "counts": "e0"},
    "unfinished": {"size": [4, 5], "counts": "d"},
    "bad character": {"size": [4, 5], "counts": "d!"},
    "not ascii": {"size": [4, 5], "counts": "dé"},
    "endless number": {"size": [4, 5], "counts": "o" * 30 + "0"},
    "negative run": {"size": [4, 5], "counts": "O"},
    "huge": {"size": [10**9, 10**9], "counts": "d0"},
    "empty": {"size": [4, 5], "counts": ""},
    "negative in list": {"size": [4, 5], "counts": [30, -10]},
    "list too long": {"size": [4, 5], "counts": [10, 2**61, 2**61]},
    "list of text": {"size": [4, 5], "counts": ["20"]},
}


@pytest.mark.parametrize("rle", RLE_FAULTS.values(), ids=RLE_FAULTS)
def test_corrupt_rle_is_refused(rle: Any) -> None:
    with pytest.raises(InputError, match=r"^mask 7: "):
        BitMask.from_rle(rle, "mask 7")


def test_damaged_rle_never_reads_or_writes_outside() -> None:
    """Random texts either fail or give a mask of the stated size."""
    rng = np.random.default_rng(7)
    accepted = 0
    for _ in range(3000):
        text = "".join(chr(c) for c in rng.integers(47, rng.choice([66, 116]), rng.integers(1, 8)))
        try:
            accepted += BitMask.from_rle({"size": [6, 7], "counts": text}).area() <= 42
        except InputError:
            continue
    assert accepted


def test_rle_as_bytes_and_as_list() -> None:
    rle = encode_rle(np.eye(6, 9))
    text = rle["counts"]
    want = BitMask.from_rle(rle)
    assert BitMask.from_rle({**rle, "counts": text.encode()}) == want
    runs = [0] + [1 if i % 2 == 0 else 6 for i in range(11)] + [18]
    assert BitMask.from_rle({"size": [6, 9], "counts": runs}) == want


def naive_values(gt: NDArray[Any], value: NDArray[Any], foreground: NDArray[Any]) -> tuple[float, float]:
    """A and R by their formula, on Python integers."""
    same = false_positives = 0
    for g, v in zip(gt.ravel().tolist(), value.ravel().tolist(), strict=True):
        same += g == v
        false_positives += ((1 - g) * v) % 256
    return same / gt.size, max(1 - false_positives / (int(foreground.sum()) + 1e-6), 0)


def test_accuracy_and_robustness() -> None:
    rng = np.random.default_rng(8)
    for _, a, b in cases(9, 3):
        other = random_mask(rng, *a.shape)
        foreground = a | other
        want = naive_values(a.astype(int), b.astype(int), foreground)
        packed = [BitMask.pack(m) for m in (a, b, foreground)]
        assert accuracy_robustness(packed[0], packed[1], packed[2]) == pytest.approx(want, abs=1e-12)
        count = a.astype(np.uint8) + other.astype(np.uint8)  # pixels under two instances wrap
        value = b * rng.integers(0, 256, b.shape, dtype=np.uint8)
        want = naive_values(count, value, foreground)
        assert accuracy_robustness_of_values(count, value, packed[2]) == pytest.approx(want, abs=1e-12)
