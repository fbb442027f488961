"""The four-annotator protocol on a made-up set: merging, averaging, strictness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_davis import frame, write

from glus.errors import InputError
from glus.evaluation.expression_commands import davis_main
from glus.evaluation.labels import merge_objects
from glus.masks import encode_rle, write_mask_png

FRAMES = ["00000", "00001", "00002"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Video `cat` with two objects; annotators 0 to 2 are right, annotator 3 swaps the two objects."""
    truth = [frame((1, 2 + t), (2, 25)) for t in range(3)]
    write(tmp_path / "davis/Annotations_unsupervised/480p/cat", truth)
    listing = tmp_path / "davis/ImageSets/2017/val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("cat\n")
    expressions = {str(i): {"exp": f"thing {i}", "obj_id": str(i // 4 + 1)} for i in range(8)}
    meta = {"videos": {"cat": {"frames": FRAMES, "expressions": expressions}}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    for i in range(8):
        label = i // 4 + 1 if i % 4 < 3 else 2 - i // 4
        for name, labels in zip(FRAMES, truth, strict=True):
            path = tmp_path / "pred/cat" / str(i) / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask_png(path, labels == label)
    return tmp_path


def run(dataset: Path, *options: str, predictions: str = "pred") -> Any:
    out = dataset / "out.json"
    arguments = ["--protocol", "four-annotators", "--davis_path", str(dataset / "davis"), "--workers", "1"]
    arguments += ["--mevis_exp_path", str(dataset / "meta.json"), "--json", str(out)]
    assert davis_main([*arguments, "--mevis_pred_path", str(dataset / predictions), *options]) == 0
    return json.loads(out.read_text())


def test_matching_forgives_a_swap(dataset: Path) -> None:
    found = run(dataset, "--csv_dir", str(dataset / "csv"))
    assert (found["J"], found["F"], found["J&F"]) == (1.0, 1.0, 1.0)
    assert list(found["annotators"]) == ["anno_0", "anno_1", "anno_2", "anno_3"]
    csv = (dataset / "csv/anno_3/global_results-val.csv").read_text().splitlines()
    assert csv[1].startswith("1.00000,1.00000")


def test_mean_over_annotators(dataset: Path) -> None:
    for name in FRAMES:
        write_mask_png(dataset / f"pred/cat/5/{name}.png", np.zeros((30, 40), np.bool_))
    found = run(dataset)
    assert found["annotators"]["anno_1"]["J"] == 0.5
    assert found["J"] == (1 + 0.5 + 1 + 1) / 4


def test_run_length_predictions_score_the_same(dataset: Path) -> None:
    def code(i: int, t: int) -> Any:
        mask = frame((1, 2 + t), (2, 25)) == i // 4 + 1
        return None if (i, t) == (3, 1) else encode_rle(mask)

    masks = {str(i): {"prediction_masks": [code(i, t) for t in range(3)]} for i in range(8)}
    (dataset / "pred.json").write_text(json.dumps({"cat": masks}))
    with pytest.raises(InputError, match="cat/3, frame 00001: missing"):
        run(dataset, predictions="pred.json")
    found = run(dataset, "--allow_missing", predictions="pred.json")
    assert found["missing"] == 1
    assert found["annotators"]["anno_0"]["J"] == 1.0
    assert found["annotators"]["anno_3"]["J"] == (2 / 3 + 1) / 2


def test_every_fault_is_listed(dataset: Path) -> None:
    cat = dataset / "pred/cat"
    (cat / "0/00001.png").unlink()
    for path in (cat / "6").iterdir():
        path.unlink()
    (cat / "6").rmdir()
    write_mask_png(cat / "1/00000.png", np.zeros((31, 40), np.bool_))
    write(cat / "99", [frame()])
    write(dataset / "pred/dog/0", [frame()])
    with pytest.raises(InputError) as caught:
        run(dataset)
    text = str(caught.value)
    for wanted in (
        "cat/0/00001.png: missing",
        "cat/6: no such folder",
        "the masks of frame 00000 have different sizes",
        "cat/99 is not an expression",
        "dog is not a video",
    ):
        assert text.count(wanted) == 1, wanted


def test_missing_masks_leave_out_only_their_object(dataset: Path) -> None:
    (dataset / "pred/cat/0/00001.png").unlink()
    found = run(dataset, "--allow_missing")
    assert found["missing"] == 1
    assert found["annotators"]["anno_0"]["J"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda video: video["expressions"].pop("7"), "must have the ids 0 to 4n-1"),
        (lambda video: video["expressions"]["2"].update(obj_id="2"), "must be about one object"),
        (lambda video: video["frames"].pop(), "frames are not the annotated ones"),
        (lambda video: video.pop("expressions"), "has no field 'expressions'"),
    ],
)
def test_faults_of_the_expression_file(dataset: Path, change: Any, message: str) -> None:
    meta = json.loads((dataset / "meta.json").read_text())
    change(meta["videos"]["cat"])
    (dataset / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match=message):
        run(dataset)


def test_options_of_the_other_protocol_are_refused(dataset: Path) -> None:
    for option in ("iou_path", "csv", "save_name", "mevis_mask_path"):
        with pytest.raises(InputError, match=f"--{option} belongs to --protocol expression-wise"):
            run(dataset, f"--{option}", str(dataset / "x"))


def test_merging_binary_masks_equals_merging_scores() -> None:
    random = np.random.default_rng(0)
    masks = [random.random((20, 30)) < 0.4 for _ in range(5)]
    scores = [mask.astype(np.float32) for mask in masks]
    np.testing.assert_array_equal(merge_objects(masks), merge_objects(scores))
    first = np.argmax([np.full((20, 30), 0.1), *scores], axis=0)
    np.testing.assert_array_equal(merge_objects(masks), first)


@pytest.mark.parametrize("count", [0, 255])
def test_merging_needs_a_sensible_number_of_objects(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 254"):
        merge_objects([np.zeros((2, 2), np.bool_)] * count)
