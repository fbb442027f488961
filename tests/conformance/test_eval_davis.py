"""DAVIS 2017 protocols and vos-benchmark against the numbers of the original tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glus.evaluation.davis import PROTOCOLS, VOS_BENCHMARK, LabelFolder, Protocol, Sequence, score_sequence
from glus.evaluation.davis_results import (
    DavisScores,
    folder_dataset,
    global_csv,
    object_names,
    per_sequence_csv,
    score_dataset,
    summarise,
    vos_benchmark_csv,
)
from glus.evaluation.statistics import statistics

TOLERANCE = 1e-10
Golden = Callable[[str], Path]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def sequence_list(folder: Path, name: str) -> list[str]:
    return (folder / "masks/ImageSets/2017" / f"{name}.txt").read_text().split()


def score(
    folder: Path, truth: str, predictions: str, names: list[str], protocol: Protocol, workers: int = 1
) -> DavisScores:
    dataset = folder_dataset(
        folder / "masks" / truth, folder / "masks" / predictions, protocol, names, allow_extra=True
    )
    return summarise(protocol, score_dataset(dataset, workers))


def check_davis(scores: DavisScores, expected: dict[str, Any]) -> None:
    """Per-frame values, statistics and totals of the official code."""
    assert scores.totals == pytest.approx(expected["global"], abs=TOLERANCE, nan_ok=True)
    assert list(scores.region) == list(expected["per_object"])
    for name, wanted in expected["per_object"].items():
        assert scores.region[name].as_list() == pytest.approx(wanted["J"], abs=TOLERANCE, nan_ok=True)
        assert scores.boundary[name].as_list() == pytest.approx(wanted["F"], abs=TOLERANCE, nan_ok=True)
    assert expected["per_frame"]
    for sequence in scores.sequences:
        for name, scored in zip(object_names(sequence, scores.protocol), sequence.objects, strict=True):
            wanted = expected["per_frame"][name]
            assert scored.frames == wanted["frames"]
            assert scored.region.tolist() == pytest.approx(wanted["J"], abs=TOLERANCE)
            assert scored.boundary.tolist() == pytest.approx(wanted["F"], abs=TOLERANCE)


@pytest.mark.parametrize(("task", "predictions"), [("semi-supervised", "semi"), ("unsupervised", "proposals")])
def test_official_task(golden: Golden, task: str, predictions: str) -> None:
    folder = golden("eval")
    expected = read(folder / "expected" / f"davis_{task.replace('-', '')}.json")
    names = sequence_list(folder, "val")
    scores = score(folder, "gt", predictions, names, PROTOCOLS[task])
    check_davis(scores, expected)
    if "global_csv" in expected:
        assert global_csv(scores) == expected["global_csv"]
        assert per_sequence_csv(scores) == expected["per_sequence_csv"]


@pytest.mark.parametrize(("task", "predictions"), [("semi-supervised", "semi"), ("unsupervised", "proposals")])
def test_void_pixels(golden: Golden, task: str, predictions: str) -> None:
    folder = golden("eval")
    expected = read(folder / "expected/davis_void.json")[task]
    names = sequence_list(folder, "val_void")
    check_davis(score(folder, "gt_void", predictions, names, PROTOCOLS[task]), expected)


@pytest.mark.parametrize(("key", "skip"), [("skip_first_and_last", True), ("all_frames", False)])
def test_vos_benchmark(golden: Golden, key: str, skip: bool) -> None:
    folder = golden("eval")
    expected = read(folder / "expected/vos_benchmark.json")[key]
    names = sorted(expected["per_object"])
    scores = score(folder, "gt", "semi", names, replace(VOS_BENCHMARK, skip_ends=skip))
    for short, column in (("J&F", "J&F-Mean"), ("J", "J-Mean"), ("F", "F-Mean")):
        assert 100 * scores.totals[column] == pytest.approx(expected[short], abs=TOLERANCE)
    for sequence in scores.sequences:
        wanted = expected["per_object"][sequence.name]
        assert percentages(sequence.objects) == {k: pytest.approx(v, abs=TOLERANCE) for k, v in wanted.items()}
    if "results_csv" in expected:
        assert vos_benchmark_csv(scores) == expected["results_csv"]


def percentages(objects: list[Any]) -> dict[str, list[float]]:
    return {str(o.label): [100 * float(o.region.mean()), 100 * float(o.boundary.mean())] for o in objects}


def test_result_does_not_depend_on_the_number_of_processes(golden: Golden) -> None:
    folder = golden("eval")
    names = sequence_list(folder, "val_ref")
    one = score(folder, "gt", "proposals", names, PROTOCOLS["unsupervised"], workers=1)
    two = score(folder, "gt", "proposals", names, PROTOCOLS["unsupervised"], workers=2)
    assert one.as_json() == two.as_json()


PALETTE_PROTOCOLS = {
    "semi-supervised": PROTOCOLS["semi-supervised"],
    "unsupervised": PROTOCOLS["unsupervised"],
    "vos_benchmark_skip": VOS_BENCHMARK,
    "vos_benchmark_all_frames": replace(VOS_BENCHMARK, skip_ends=False),
}


@pytest.mark.parametrize("key", PALETTE_PROTOCOLS)
def test_palette_cases(golden: Golden, key: str) -> None:
    """Where the original gives numbers, ours are the same; where it exits, raises or hangs, ours says why."""
    folder = golden("eval") / "palette_cases"
    protocol = PALETTE_PROTOCOLS[key]
    cases = read(folder / "expected.json")
    assert cases
    for case, results in cases.items():
        expected = results[key]
        truth, prediction = (LabelFolder(folder / part / case) for part in ("gt", "pred"))
        result = score_sequence(Sequence(case, truth, prediction, protocol, allow_extra=True))
        problems = result.faults + result.missing
        if isinstance(expected, str):
            assert problems, case
            assert all(case in line for line in problems), case
            continue
        assert not problems, case
        if protocol.objects == "all":
            found = percentages(result.objects)
            assert found == {k: pytest.approx(v, abs=TOLERANCE) for k, v in expected.items()}, case
            continue
        assert object_names(result, protocol) == list(expected), case
        for name, scored in zip(expected, result.objects, strict=True):
            for values, wanted in ((scored.region, expected[name]["J"]), (scored.boundary, expected[name]["F"])):
                assert statistics(values).as_list() == pytest.approx(wanted, abs=TOLERANCE, nan_ok=True), case


def test_extra_predictions_are_refused_by_default(golden: Golden) -> None:
    """Every palette case that has frames without annotation is refused, naming them."""
    folder = golden("eval") / "palette_cases"
    checked = 0
    for case in read(folder / "expected.json"):
        truth, prediction = (LabelFolder(folder / part / case) for part in ("gt", "pred"))
        extra = sorted(set(prediction.names()) - set(truth.names()))
        result = score_sequence(Sequence(case, truth, prediction, PROTOCOLS["unsupervised"]))
        named = [line for line in result.faults if "not an annotated frame" in line]
        assert [line.split(":")[0] for line in named] == [f"{case}/{name}" for name in extra]
        checked += bool(extra)
    assert checked
