"""The IoU of every frame, through the command that writes it (conformance kfs/README.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from kfs_golden import load

from glus.masks import encode_rle, write_mask_png
from kfs.annotate import main as annotate


def masks_of(entry: dict[str, Any], arrays: Any, name: str) -> tuple[Any, Any]:
    """(objects, T, H, W) and (T, H, W) bool."""

    def unpack(part: str, shape: list[int]) -> Any:
        (packed,) = (arrays[key] for key in arrays if key.startswith(name) and part in key)
        return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)

    return unpack("gt", entry["shape_gt"]), unpack("pred", entry["shape_pred"])


def write_mevis(folder: Path, meta: dict[str, Any], truths: dict[str, Any]) -> None:
    """Objects may overlap there, and a frame without one is null."""
    folder = folder / "mevis" / "train"
    folder.mkdir(parents=True)
    masks: dict[str, Any] = {}
    for name, truth in truths.items():
        ids = [str(len(masks) + number) for number in range(len(truth))]
        meta[name]["expressions"]["0"]["anno_id"] = ids
        for anno, clip in zip(ids, truth, strict=True):
            masks[anno] = [encode_rle(mask) if mask.any() else None for mask in clip]
    (folder / "meta_expressions.json").write_text(json.dumps({"videos": meta}))
    (folder / "mask_dict.json").write_text(json.dumps(masks))


def write_youtube(folder: Path, meta: dict[str, Any], truths: dict[str, Any]) -> None:
    """One object, one number, another object beside it."""
    folder = folder / "Refer-YouTube-VOS"
    for name, truth in truths.items():
        meta[name]["expressions"]["0"]["obj_id"] = 2
        place = folder / "train" / "Annotations" / name
        place.mkdir(parents=True)
        for frame, mask in zip(meta[name]["frames"], truth.any(axis=0), strict=True):
            cv2.imwrite(str(place / f"{frame}.png"), np.where(mask, 2, 1).astype(np.uint8))
    expressions = folder / "meta_expressions" / "train"
    expressions.mkdir(parents=True)
    (expressions / "meta_expressions.json").write_text(json.dumps({"videos": meta}))


@pytest.mark.parametrize(("dataset", "write"), [("mevis_train", write_mevis), ("refytvos_train", write_youtube)])
def test_iou_annotation(golden: Callable[[str], Path], tmp_path: Path, dataset: str, write: Any) -> None:
    spec, arrays = load(golden("kfs"), "iou_annotation")
    assert spec
    meta: dict[str, Any] = {}
    truths = {}
    for name, entry in spec.items():
        truths[name], predicted = masks_of(entry, arrays, name)
        frames = [f"{5 * t:05d}" for t in range(len(predicted))]
        meta[name] = {"frames": frames, "expressions": {"0": {"exp": "it"}}}
        place = tmp_path / "pred" / name / "0"
        place.mkdir(parents=True)
        for frame, mask in zip(frames, predicted, strict=True):
            write_mask_png(place / f"{frame}.png", mask)
    write(tmp_path, meta, truths)
    flags = ["--dataset", dataset, "--dataset_dir", str(tmp_path), "--pred_path", str(tmp_path / "pred")]
    assert annotate([*flags, "--iou_path", str(tmp_path / "iou"), "--workers", "1"]) == 0
    for name, entry in spec.items():
        ours = json.loads((tmp_path / "iou" / name / "0.json").read_text())
        np.testing.assert_allclose(ours, entry["iou"], rtol=0, atol=1e-12, err_msg=name)
