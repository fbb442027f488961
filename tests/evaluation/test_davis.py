"""DAVIS protocols on small made-up trees: strictness, options, files; nothing here needs the goldens."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glus.errors import InputError
from glus.evaluation.davis import (
    SEMI_SUPERVISED,
    UNSUPERVISED,
    VOS_BENCHMARK,
    LabelFolder,
    Sequence,
    score_sequence,
)
from glus.evaluation.davis_command import official_main
from glus.evaluation.davis_results import folder_dataset, score_dataset, summarise

ROOT = Path(__file__).resolve().parents[2]
PALETTE = [v for i in range(256) for v in (i, 255 - i, i // 2)]


def save(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(PALETTE)
    image.save(path)


def frame(*objects: tuple[int, int]) -> np.ndarray:
    """A 30x40 label map with an 8x8 square of each (id, column)."""
    labels = np.zeros((30, 40), np.uint8)
    for label, column in objects:
        labels[10:18, column : column + 8] = label
    return labels


def write(folder: Path, frames: list[np.ndarray]) -> None:
    for index, labels in enumerate(frames):
        save(folder / f"{index:05d}.png", labels)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A DAVIS tree of two sequences, and perfect results in `results`."""
    for name, count in (("cat", 5), ("dog", 6)):
        frames = [frame((1, 2 + t), (2, 25)) for t in range(count)]
        for part in ("Annotations/480p", "Annotations_unsupervised/480p"):
            write(tmp_path / part / name, frames)
        write(tmp_path / "results" / name, frames)
    listing = tmp_path / "ImageSets/2017/val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("cat\ndog\n")
    return tmp_path


def run(tree: Path, *options: str) -> Any:
    """The JSON of the command."""
    out = tree / "out.json"
    arguments = ["--davis_path", str(tree), "--results_path", str(tree / "results"), "--workers", "1"]
    assert official_main([*arguments, "--json", str(out), *options]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("options", [("--task", "semi-supervised"), ("--protocol", "vos-benchmark"), ()])
def test_perfect_results_score_one(tree: Path, options: tuple[str, ...]) -> None:
    found = run(tree, *options)
    assert (found["J"], found["F"], found["J&F"], found["missing"]) == (1.0, 1.0, 1.0, 0)
    assert len(found["objects"]) == 4


def test_every_fault_is_listed_at_once(tree: Path) -> None:
    results = tree / "results"
    (results / "cat/00001.png").unlink()
    (results / "cat/00002.png").write_bytes((results / "cat/00003.png").read_bytes()[:60])
    save(results / "cat/00009.png", frame())
    save(results / "dog/00001.png", np.zeros((31, 40)))
    save(results / "dog/00002.png", frame((3, 5)))
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(results / "dog/00003.png")
    write(results / "horse", [frame()])
    with pytest.raises(InputError) as caught:
        run(tree, "--task", "semi-supervised")
    lines = str(caught.value).splitlines()
    wanted = [
        "horse: not a sequence",
        "cat/00009: predicted, but",
        "cat/00001.png: missing",
        "cat/00002.png: truncated",
        "dog/00001: prediction is 31x40, ground truth 30x40",
        "dog/00002: predicted id 3",
        "dog/00003.png: a label map must be",
    ]
    assert lines[0].endswith(f"faults: {len(wanted)}")
    for text in wanted:
        assert sum(text in line for line in lines) == 1, text


def test_missing_predictions_count_as_empty_on_request(tree: Path) -> None:
    results = tree / "results"
    (results / "cat/00001.png").unlink()
    (results / "cat/00002.png").write_bytes(b"not a PNG")
    found = run(tree, "--task", "semi-supervised", "--allow_missing")
    assert found["missing"] == 2
    assert found["objects"]["cat_1"]["J_frames"] == [0.0, 0.0, 1.0]
    save(results / "cat/00001.png", frame())
    save(results / "cat/00002.png", frame())
    assert run(tree, "--task", "semi-supervised")["objects"] == found["objects"]


def test_a_missing_sequence_is_one_fault(tree: Path) -> None:
    for path in (tree / "results/dog").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"faults: 1\n.*dog: no predictions in "):
        run(tree, "--task", "semi-supervised")
    found = run(tree, "--task", "semi-supervised", "--allow_missing")
    assert found["missing"] == 4
    assert found["J"] == 0.5


def test_a_size_mismatch_is_never_tolerated(tree: Path) -> None:
    save(tree / "results/dog/00001.png", np.zeros((31, 40)))
    with pytest.raises(InputError, match="31x40"):
        run(tree, "--allow_missing", "--allow_extra")


def test_stale_csv_files_are_not_read(tree: Path) -> None:
    for name in ("global_results-val.csv", "per-sequence_results-val.csv"):
        (tree / "results" / name).write_text("stale")
    run(tree, "--task", "semi-supervised")
    lines = (tree / "results/global_results-val.csv").read_text().splitlines()
    assert lines[1] == "1.000,1.000,1.000,0.000,1.000,1.000,0.000"
    assert (tree / "results/per-sequence_results-val.csv").read_text().count("1.000,1.000") == 4


def test_swapped_ids_cost_nothing_only_with_matching(tree: Path) -> None:
    for path in (tree / "results").glob("*/*.png"):
        labels = np.asarray(Image.open(path))
        save(path, np.array([0, 2, 1])[labels])
    assert run(tree, "--task", "unsupervised")["J"] == 1.0
    assert run(tree, "--task", "semi-supervised")["J"] < 0.5


def test_more_than_twenty_proposals_are_refused(tree: Path) -> None:
    save(tree / "results/cat/00000.png", frame((21, 3)))
    with pytest.raises(InputError, match="predicted id 21; at most 20 proposals"):
        run(tree, "--task", "unsupervised")


def test_gaps_in_the_ids(tmp_path: Path) -> None:
    """Officially ids 1 and 2 are empty objects that score 1; `present` leaves them out."""
    truth, prediction = tmp_path / "truth", tmp_path / "prediction"
    write(truth, [frame((3, 4))] * 4)
    write(prediction, [frame((3, 20))] * 4)
    for protocol, expected in (
        (SEMI_SUPERVISED, {1: 1.0, 2: 1.0, 3: 0.0}),
        (replace(SEMI_SUPERVISED, objects="present"), {3: 0.0}),
        (VOS_BENCHMARK, {3: 0.0}),
    ):
        result = score_sequence(Sequence("x", LabelFolder(truth), LabelFolder(prediction), protocol))
        assert {o.label: float(o.region.mean()) for o in result.objects} == expected


def test_void_pixels_count_only_where_the_protocol_knows_them(tmp_path: Path) -> None:
    truth, prediction = tmp_path / "truth", tmp_path / "prediction"
    write(truth, [frame((1, 4), (255, 12))] * 4)
    write(prediction, [frame((1, 4), (1, 12))] * 4)

    def score(protocol: Any) -> float:
        result = score_sequence(Sequence("x", LabelFolder(truth), LabelFolder(prediction), protocol))
        return float(result.objects[0].region.mean())

    assert score(UNSUPERVISED) == 1.0
    assert score(SEMI_SUPERVISED) == 0.5


def test_objects_from_their_first_appearance(tmp_path: Path) -> None:
    """vos-benchmark: frames before an object's first appearance do not count, in either of the two."""
    truth, prediction = tmp_path / "truth", tmp_path / "prediction"
    write(truth, [frame(), frame(), frame((7, 4)), frame((7, 4))])
    write(prediction, [frame(), frame((7, 4)), frame((7, 4)), frame((9, 20))])
    protocol = replace(VOS_BENCHMARK, skip_ends=False)
    result = score_sequence(Sequence("x", LabelFolder(truth), LabelFolder(prediction), protocol))
    assert [o.label for o in result.objects] == [7]
    assert result.objects[0].frames == ["00001", "00002", "00003"]
    assert result.objects[0].region.tolist() == [0.0, 1.0, 0.0]


def test_decay_of_long_sequences(tmp_path: Path) -> None:
    """The original's 8-bit bins make the decay of 300 frames NaN."""
    truth, prediction = tmp_path / "truth/x", tmp_path / "prediction/x"
    write(truth, [frame((1, 4))] * 302)
    write(prediction, [frame((1, 4))] * 151 + [frame()] * 151)
    results = score_dataset(folder_dataset(truth.parent, prediction.parent, SEMI_SUPERVISED), workers=1)
    assert summarise(SEMI_SUPERVISED, results).totals["J-Decay"] == 1.0
    compatible = summarise(SEMI_SUPERVISED, results, uint8_decay=True)
    assert np.isnan(compatible.totals["J-Decay"])
    assert compatible.as_json()["J-Decay"] is None


def test_gray_and_palette_maps_read_alike(tree: Path) -> None:
    before = run(tree, "--task", "semi-supervised")
    for path in (tree / "results").glob("*/*.png"):
        Image.fromarray(np.asarray(Image.open(path))).save(path)
    assert run(tree, "--task", "semi-supervised") == before


def test_ground_truth_folder_of_any_set(tree: Path) -> None:
    arguments = ["-g", str(tree / "Annotations/480p"), "-m", str(tree / "results"), "-n", "1"]
    assert official_main([*arguments, "--protocol", "vos-benchmark"]) == 0
    lines = (tree / "results/results.csv").read_text().splitlines()
    assert lines[1] == "Global score,   ,100.0,100.0,100.0"
    assert [line.split(",")[:2] for line in lines[2:]] == [
        ["cat         ", "001"],
        ["cat         ", "002"],
        ["dog         ", "001"],
        ["dog         ", "002"],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "train"], "train.txt: not found"),
        (["--set", "../val"], "not a plain file name"),
        (["--task", "semi-supervised", "-d"], "belongs to --protocol vos-benchmark"),
        (["--gt", "x"], "give --davis_path or --gt"),
        (["--sequences", "cat,cow"], "not in the set: cow"),
    ],
)
def test_wrong_options(tree: Path, options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(tree, *options)


@pytest.mark.parametrize(
    ("listing", "message"),
    [("", "lists no sequences"), ("../dog", "not a plain file name"), ("cat cat", "lists a sequence twice")],
)
def test_wrong_set_lists(tree: Path, listing: str, message: str) -> None:
    (tree / "ImageSets/2017/val.txt").write_text(listing)
    with pytest.raises(InputError, match=message):
        run(tree)


def test_part_of_a_set(tree: Path) -> None:
    """Results of the other sequences of the set are then no fault; those of none still are."""
    for source in (["--davis_path", str(tree)], ["--gt", str(tree / "Annotations/480p")]):
        arguments = [*source, "--results_path", str(tree / "results"), "--sequences", "dog", "--workers", "1"]
        arguments += ["--json", str(tree / "out.json"), "--csv_dir", str(tree / "new/folder")]
        assert official_main(arguments) == 0
        assert list(json.loads((tree / "out.json").read_text())["objects"]) == ["dog_1", "dog_2"]
        assert len(list((tree / "new/folder").iterdir())) == 2
    write(tree / "results/horse", [frame()])
    with pytest.raises(InputError, match="horse: not a sequence"):
        official_main(arguments)


def test_ground_truth_faults(tree: Path) -> None:
    (tree / "Annotations/480p/cat/00002.png").write_bytes(b"junk")
    for path in (tree / "Annotations/480p/dog").iterdir():
        path.unlink()
    with pytest.raises(InputError) as caught:
        run(tree, "--task", "semi-supervised", "--allow_extra")
    assert "cat/00002.png: not a PNG" in str(caught.value)
    assert "dog: no annotated frames" in str(caught.value)


def test_command_exits_with_2_and_lists_faults(tree: Path) -> None:
    (tree / "results/cat/00001.png").unlink()
    script = [sys.executable, str(ROOT / "utils/eval_davis_official.py"), "--davis_path", str(tree)]
    done = subprocess.run(
        [*script, "--results_path", str(tree / "results")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "cat/00001.png: missing" in done.stderr
    assert not list((tree / "results").glob("*.csv"))
