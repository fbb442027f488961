"""Masks as files of every kind, read back by other means than those that wrote them."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from video_files import decoded_alpha, heard, write_file

from glus.data.coco import segmentation_mask
from glus.errors import InputError, OutputError
from glus.evaluation.png import read_labels
from glus.inference.exports import davis_palette
from glus.inference.result import SegmentResult
from glus.masks import read_mask
from glus.video import FrameSource, open_frames, select, times_of

TEXTS = ["the <red> square", "what, moves"]
SHAPE = (33, 47)


def moving_masks(frames: int = 5, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    """Two overlapping rectangles; the second is not there in frame 2."""
    masks = torch.zeros(2, frames, *shape, dtype=torch.bool)
    for i in range(frames):
        masks[0, i, 4:20, 3 + 2 * i : 19 + 2 * i] = True
        if i != 2:
            masks[1, i, 12:30, 10:31] = True
    return masks


def make_result(source: FrameSource) -> SegmentResult:
    masks = moving_masks(len(source), source[0].shape[:2])
    scores = torch.linspace(0.2, 0.9, 2 * len(source)).reshape(2, -1)
    return SegmentResult(source, TEXTS, masks, scores, torch.zeros(2, len(source), dtype=torch.bool))


@pytest.fixture(scope="module")
def result() -> SegmentResult:
    return make_result(open_frames(np.random.default_rng(0).integers(60, 256, (5, *SHAPE, 3), dtype=np.uint8)))


def test_masks(result: SegmentResult, tmp_path: Path) -> None:
    assert result.save_masks(tmp_path / "m") == tmp_path / "m"
    for row in range(2):
        for i in range(5):
            found = cv2.imread(str(tmp_path / f"m/{row}/{i:05d}.png"), cv2.IMREAD_UNCHANGED)
            assert set(np.unique(found)) <= {0, 255}
            assert ((found > 0) == result.masks[row, i].numpy()).all()


def test_palette(result: SegmentResult, tmp_path: Path) -> None:
    result.save_palette(tmp_path)
    for i in range(5):
        with Image.open(tmp_path / f"{i:05d}.png") as picture:
            assert picture.mode == "P"
            labels = np.asarray(picture)
            colours = picture.getpalette()
        first, second = result.masks[:, i].numpy()
        assert (labels == np.where(first, 1, np.where(second, 2, 0))).all()
        assert (read_labels(tmp_path / f"{i:05d}.png") == labels).all()
        assert colours is not None
        assert colours[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    assert davis_palette()[3 * 255 :] == bytes((224, 224, 192))
    many = SegmentResult(
        result._source, ["x"] * 255, result.masks[:1].expand(255, -1, -1, -1), result.scores, result.failed
    )
    with pytest.raises(InputError, match="254 sentences"):
        many.save_palette(tmp_path / "many")


def test_run_length_codes_of_a_video(result: SegmentResult, tmp_path: Path) -> None:
    content: dict[str, Any] = json.loads(result.save_rle(tmp_path / "r.json").read_text())
    assert content["videos"] == [
        {"id": 1, "file_names": [f"{i:05d}.jpg" for i in range(5)], "width": 47, "height": 33, "length": 5}
    ]
    assert content["categories"] == [{"id": 1, "name": TEXTS[0]}, {"id": 2, "name": TEXTS[1]}]
    boxes = result.boxes().tolist()
    for row, annotation in enumerate(content["annotations"]):
        assert (annotation["id"], annotation["video_id"], annotation["category_id"]) == (row + 1, 1, row + 1)
        for i in range(5):
            mask = result.masks[row, i].numpy()
            assert (segmentation_mask(annotation["segmentations"][i], *SHAPE, "here") == mask).all()
            assert annotation["areas"][i] == mask.sum()
            assert annotation["bboxes"][i] == (boxes[row][i] if mask.any() else None)
            assert annotation["scores"][i] == pytest.approx(float(result.scores[row, i]), abs=1e-6)
    assert content["annotations"][1]["segmentations"][2] is None
    assert [row[i] for row in result.to_rle() for i in (0,)] == [
        a["segmentations"][0] for a in content["annotations"]
    ]


def test_run_length_codes_of_pictures(result: SegmentResult, tmp_path: Path) -> None:
    """Read by the reference implementation of COCO."""
    coco = COCO(str(result.save_rle(tmp_path / "r.json", form="coco")))
    assert len(coco.getImgIds()) == 5
    assert len(coco.getAnnIds()) == 9  # one mask is empty
    for annotation in coco.loadAnns(coco.getAnnIds()):
        row, i = annotation["category_id"] - 1, annotation["image_id"] - 1
        mask = result.masks[row, i].numpy()
        assert (coco.annToMask(annotation) == mask).all()
        assert annotation["bbox"] == result.boxes()[row, i].tolist()
    with pytest.raises(InputError, match="must be one of"):
        result.save_rle(tmp_path / "x.json", form="xml")  # type: ignore[arg-type]


def test_boxes(result: SegmentResult, tmp_path: Path) -> None:
    boxes = result.boxes()
    assert boxes.shape == (2, 5, 4)
    assert boxes[0].tolist() == [[3 + 2 * i, 4, 16, 16] for i in range(5)]
    assert boxes[1].tolist() == [[10, 12, 21, 18] if i != 2 else [0, 0, 0, 0] for i in range(5)]
    with open(result.save_boxes(tmp_path / "b.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert [rows[5][name] for name in ("frame", "number", "sentence", "x")] == ["00002", "1", TEXTS[1], ""]
    assert [int(rows[0][name]) for name in ("x", "y", "width", "height")] == boxes[0, 0].tolist()
    assert float(rows[0]["score"]) == pytest.approx(0.2)


def test_cut_out_pictures(result: SegmentResult, tmp_path: Path) -> None:
    result.save_cutouts(tmp_path)
    for row in range(2):
        for i in range(5):
            mask = result.masks[row, i].numpy()
            pixels = cv2.imread(str(tmp_path / f"{row}/{i:05d}.png"), cv2.IMREAD_UNCHANGED)
            assert (pixels[..., 3] == 255 * mask).all()
            assert (pixels[..., 2::-1][mask] == result._source[i][mask]).all()
            assert not pixels[~mask].any()  # nothing of the ground


def test_cut_out_videos(result: SegmentResult, tmp_path: Path) -> None:
    result.save_cutouts(tmp_path, form="webm")
    for row in range(2):
        back = decoded_alpha(tmp_path / f"{row}.webm")
        assert back.shape == (5, *SHAPE, 4)
        masks = result.masks[row].numpy()
        assert ((back[..., 3] > 127) == masks).mean() > 0.97
        far = cv2.dilate(masks[0].astype(np.uint8), np.ones((17, 17))) == 0
        assert back[0][far][:, :3].mean() < 8  # the ground of 60 to 255 is gone
        assert open_frames(tmp_path / f"{row}.webm").fps == 6
    with pytest.raises(InputError, match="must be one of"):
        result.save_cutouts(tmp_path, form="gif")  # type: ignore[arg-type]


def test_video_keeps_size_times_and_sound(tmp_path: Path) -> None:
    stamps = [0, 100, 150, 400, 900, 1000]
    path = write_file(tmp_path / "a.mp4", frames=6, stamps=stamps, audio="aac")
    result = make_result(open_frames(path))
    video = open_frames(result.save_video(tmp_path / "o.mp4"))
    assert video[0].shape == (34, 48, 3)
    assert times_of(video) == tuple(Fraction(s, 1000) for s in stamps)
    assert heard(tmp_path / "o.mp4")[0] == "aac"
    plain = open_frames(path)
    for i in range(6):
        outside = ~result.masks[:, i].any(0).numpy()
        outside[:32, :] &= cv2.dilate((~outside).astype(np.uint8), np.ones((9, 9)))[:32, :] == 0
        assert np.abs(video[i][outside].astype(int) - plain[i][outside]).mean() < 4
        assert np.abs(video[i][6:10, 13:16].astype(int) - plain[i][6:10, 13:16]).mean() > 8
    result.save_video(tmp_path / "silent.mp4", audio=False)
    other = open_frames(result.save_video(tmp_path / "fast.mp4", fps=30, captions=True))
    assert other.fps == 30
    assert times_of(other) is None
    assert other[0].shape[0] > 34
    for name in ("silent.mp4", "fast.mp4"):
        with av.open(str(tmp_path / name)) as container:
            assert not container.streams.audio


def test_names_follow_the_frames_chosen(tmp_path: Path) -> None:
    source = select(open_frames(np.zeros((12, *SHAPE, 3), np.uint8)), fps=2, resize=20)
    result = make_result(source)
    result.save_masks(tmp_path)
    assert sorted(p.name for p in (tmp_path / "0").iterdir()) == [f"{i:05d}.png" for i in (0, 3, 6, 9)]
    assert read_mask(tmp_path / "0" / "00003.png").shape == (14, 20)


@pytest.mark.parametrize("kind", ["rle", "boxes", "video", "masks", "palette", "cutouts"])
def test_what_cannot_be_written(kind: str, result: SegmentResult, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        getattr(result, f"save_{kind}")(tmp_path / "file" / "x.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_progress(result: SegmentResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result.save_boxes(tmp_path / "b.csv")
    assert capsys.readouterr().err == ""
    result.save_boxes(tmp_path / "b.csv", progress=True)
    assert "5/5" in capsys.readouterr().err
