"""A made-up data set in MeViS layout, with predictions and their scores by definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from definition import boundary, random_mask, region

from glus.errors import InputError
from glus.evaluation.expression_commands import mevis_main
from glus.masks import encode_rle, write_mask_png

SHAPE = (21, 70)
FRAMES = ["00010", "00002", "00007"]  # not sorted, and not from 00000


class Data:
    """A MeViS-like data set with predictions, and its scores by definition."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(0)
        self.root = root
        self.truth: dict[str, list[Any]] = {str(a): [random_mask(rng, *SHAPE) for _ in FRAMES] for a in range(5)}
        self.pred: dict[tuple[str, str], list[Any]] = {}
        annotations = {"v_1": {"0": [0], "1": [0, 1], "10": []}, "v": {"2": [2], "x y": [3, 4, 2]}}
        self.meta: dict[str, Any] = {"videos": {}}
        for video, expressions in annotations.items():
            entries = {}
            for number, (exp_id, ids) in enumerate(expressions.items()):
                entries[exp_id] = {"exp": f"say, {exp_id}", "obj_id": ids, "anno_id": ids, "type_id": number % 3}
                self.pred[video, exp_id] = [random_mask(rng, *SHAPE) for _ in FRAMES]
            self.meta["videos"][video] = {"frames": list(FRAMES), "expressions": entries}
        self.masks: dict[str, Any] = {
            key: [encode_rle(m) if m.any() else None for m in masks] for key, masks in self.truth.items()
        }
        self.write()

    def write(self) -> None:
        (self.root / "meta.json").write_text(json.dumps(self.meta))
        (self.root / "masks.json").write_text(json.dumps(self.masks))
        for (video, exp_id), masks in self.pred.items():
            folder = self.root / "pred" / video / exp_id
            folder.mkdir(parents=True, exist_ok=True)
            for name, mask in zip(FRAMES, masks, strict=True):
                write_mask_png(folder / f"{name}.png", mask)

    def union(self, video: str, exp_id: str, t: int) -> Any:
        total = np.zeros(SHAPE, np.bool_)
        for anno in self.meta["videos"][video]["expressions"][exp_id]["anno_id"]:
            total |= self.truth[str(anno)][t]
        return total

    def scores(self, video: str, exp_id: str) -> dict[str, list[float]]:
        pairs = [(self.union(video, exp_id, t), p) for t, p in enumerate(self.pred[video, exp_id])]
        return {"J": [region(g, p) for g, p in pairs], "F": [boundary(g, p) for g, p in pairs]}

    def flags(self, *more: str) -> list[str]:
        flags = ["--mevis_exp_path", f"{self.root}/meta.json", "--mevis_mask_path", f"{self.root}/masks.json"]
        flags += ["--mevis_pred_path", f"{self.root}/pred", "--save_name", f"{self.root}/out.json"]
        return [*flags, "--json", f"{self.root}/all.json", "--workers", "1", *more]

    def mevis(self, *more: str) -> dict[str, Any]:
        assert mevis_main(self.flags(*more)) == 0
        result: dict[str, Any] = json.loads((self.root / "all.json").read_text())
        return result

    def faults(self, *more: str) -> str:
        with pytest.raises(InputError) as error:
            mevis_main(self.flags(*more))
        assert not (self.root / "all.json").exists()
        assert not (self.root / "out.json").exists()
        return str(error.value)

    def file(self, video: str, exp_id: str, t: int) -> Path:
        return self.root / "pred" / video / exp_id / f"{FRAMES[t]}.png"
