"""`GLUS.segment` and `GLUS.stream`: every kind of input, what comes out, and how much work is done."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tiny import EXPRESSIONS, files_of, tiny_clip, tiny_config, tiny_glus, traces

from glus.__main__ import main
from glus.api import GLUS
from glus.config import InferenceConfig
from glus.errors import InputError, OutputError
from glus.inference.prefetch import AHEAD
from glus.inference.result import SegmentResult
from glus.inference.selection import context_frames
from glus.masks import decode_rle
from glus.video import open_frames, write_video

CLIP = tiny_clip(7)


@pytest.fixture(scope="module")
def glus() -> GLUS:
    return tiny_glus()


@pytest.fixture(scope="module")
def result(glus: GLUS) -> SegmentResult:
    return glus.segment(CLIP, EXPRESSIONS)


def write_folder(folder: Path, clip: np.ndarray) -> Path:
    """Lossless images with names of their own."""
    folder.mkdir()
    for index, frame in enumerate(clip):
        cv2.imwrite(str(folder / f"shot_{3 * index + 5}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return folder


# -- inputs --------------------------------------------------------------------------------------------------


def test_result(result: SegmentResult) -> None:
    assert result.masks.shape == (3, 7, 40, 56)
    assert result.masks.dtype == torch.bool
    assert result.scores.shape == result.failed.shape == (3, 7)
    assert result.scores.dtype == torch.float32
    assert bool(((result.scores > 0) & (result.scores <= 1)).all())
    assert not result.failed.any()
    assert result.expressions == EXPRESSIONS
    assert result.frame_names == [f"{i:05d}" for i in range(7)]
    assert not torch.equal(result.masks[0], result.masks[1])
    assert not torch.equal(result.masks[:, 0], result.masks[:, 1])


def test_masks_are_those_of_the_plain_schedule(glus: GLUS, result: SegmentResult) -> None:
    for row, text in enumerate(EXPRESSIONS):
        for step in traces(glus, CLIP, text):
            assert step.output is not None
            full = torch.nn.functional.interpolate(step.output.low_res, (40, 56), mode="bilinear")
            assert torch.equal(result.masks[row, step.frame], full[0, 0] > 0)
            assert float(result.scores[row, step.frame]) == pytest.approx(float(step.output.iou), abs=1e-5)


def test_folder_list_and_array_agree(glus: GLUS, result: SegmentResult, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clip", CLIP)
    from_folder = glus.segment(folder, EXPRESSIONS)
    assert from_folder.frame_names == [f"shot_{3 * i + 5}" for i in range(7)]
    names = [folder / f"shot_{3 * i + 5}.png" for i in range(7)]
    for other in (from_folder, glus.segment(str(folder), EXPRESSIONS), glus.segment(names, EXPRESSIONS)):
        assert torch.equal(other.masks, result.masks)
        assert torch.equal(other.scores, result.scores)


def test_video_file(glus: GLUS, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", CLIP, fps=12)
    decoded = open_frames(tmp_path / "clip.mp4")
    from_file = glus.segment(tmp_path / "clip.mp4", EXPRESSIONS[0])
    from_array = glus.segment(np.stack([decoded[i] for i in range(len(decoded))]), EXPRESSIONS[0])
    assert torch.equal(from_file.masks, from_array.masks)
    assert from_file.masks.shape == (1, 7, 40, 56)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_any_length_from_one_frame_on(glus: GLUS, frames: int) -> None:
    clip = tiny_clip(frames)
    assert glus.segment(clip, EXPRESSIONS[:2]).masks.shape == (2, frames, 40, 56)
    assert glus.segment(clip, EXPRESSIONS[0], key_frames=[frames - 1]).masks.shape == (1, frames, 40, 56)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (33, 47)])
def test_any_frame_size(glus: GLUS, size: tuple[int, int]) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    assert glus.segment(clip, "a dog").masks.shape == (1, 2, *size)


def test_a_sentence_alone_is_a_list_of_one(glus: GLUS, result: SegmentResult) -> None:
    alone = glus.segment(CLIP, EXPRESSIONS[1])
    assert torch.equal(alone.masks[0], result.masks[1])
    assert alone.expressions == [EXPRESSIONS[1]]


# -- key frames ----------------------------------------------------------------------------------------------


def test_key_frames(glus: GLUS, result: SegmentResult) -> None:
    """D1: each mask lands on its own frame. Forward from the key frame, then backward; the backward one counts."""
    keyed = glus.segment(CLIP, EXPRESSIONS[:2], key_frames=[3, 0])
    assert torch.equal(keyed.masks[1], result.masks[1])
    steps = traces(glus, CLIP, EXPRESSIONS[0], key_frame=3)
    assert [s.frame for s in steps] == [3, 4, 5, 6, 3, 2, 1, 0]
    assert [s.recalled for s in steps] == [[], [0], [0, 1], [0, 2]] * 2
    assert {tuple(s.window_frames[:4]) for s in steps} == {tuple(context_frames(7))}
    wanted = {}
    for step in steps:
        assert step.output is not None
        wanted[step.frame] = (
            torch.nn.functional.interpolate(step.output.low_res, (40, 56), mode="bilinear")[0, 0] > 0
        )
    assert set(wanted) == set(range(7))
    for frame, mask in wanted.items():
        assert torch.equal(keyed.masks[0, frame], mask)
    assert torch.equal(glus.segment(CLIP, EXPRESSIONS[:2], key_frames=np.array([3, 0])).masks, keyed.masks)


@pytest.mark.parametrize("keys", [[0], [0, 7], [0, -1], [0, 1, 2], [], [0, 1.0], [0, "1"], [0, None], [0, True]])
def test_bad_key_frames(glus: GLUS, keys: list[Any]) -> None:
    with pytest.raises(InputError, match=r"key_frames needs one index in 0\.\.6 per expression"):
        glus.segment(CLIP, EXPRESSIONS[:2], key_frames=keys)


# -- streaming -----------------------------------------------------------------------------------------------


def test_stream_equals_segment(glus: GLUS, result: SegmentResult, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clip", CLIP)
    for index, step in enumerate(glus.stream(folder, EXPRESSIONS)):
        assert (step.frame, step.name) == (index, f"shot_{3 * index + 5}")
        assert torch.equal(step.masks, result.masks[:, index])
        assert torch.equal(step.scores, result.scores[:, index])
        assert torch.equal(step.failed, result.failed[:, index])
    assert index == 6


def test_stream_takes_the_config(glus: GLUS, result: SegmentResult) -> None:
    steps = list(glus.stream(CLIP, EXPRESSIONS[0], config=InferenceConfig(use_memory=False)))
    assert not torch.equal(torch.stack([s.masks[0] for s in steps]), result.masks[0])


def live_tensors() -> int:
    gc.collect()
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())


def test_memory_does_not_grow_with_the_clip(glus: GLUS) -> None:
    """D15: bank, token cache and everything else are as large at frame 64 as at frame 40, but for frames that a
    thread happens to have made ready (two tensors each)."""
    tensors = {}
    for step in glus.stream(tiny_clip(71), EXPRESSIONS[:2]):
        if step.frame % 8 == 0:  # chunks and the memory's stride repeat after 24 frames
            tensors[step.frame] = live_tensors()
    for frame in (24, 32, 40):
        assert abs(tensors[frame + 24] - tensors[frame]) <= 2 * (AHEAD + 2)


def test_a_failed_frame_costs_no_sam_work(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = tiny_glus(answers_seg=False)
    monkeypatch.setattr(silent.model.sam, "encode_frame", None)
    assert silent.segment(CLIP, EXPRESSIONS[0]).failed.all()


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expressions", "words"),
    [
        ([], "no expression given"),
        ("", "expression 1 is empty"),
        (["a dog", " . "], "expression 2 is empty"),
        (["a [SEG] dog"], r"expression 1 contains \[SEG\]"),
        (["a <image> dog"], "contains <image>"),
        (["a", "</s>"], "expression 2 contains </s>"),
        (["a", 5], "expression 2 must be text, found 5"),
        ([None], "expression 1 must be text"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_bad_expressions(glus: GLUS, expressions: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        glus.segment(CLIP, expressions)
    with pytest.raises(InputError, match=words):
        next(glus.stream(CLIP, expressions))


def test_too_long_an_expression_is_refused_before_any_work(glus: GLUS, monkeypatch: pytest.MonkeyPatch) -> None:
    """D25: it would fit the first windows of the clip and fail at its fourth frame."""
    fits_once = "dog " * 350
    words = r"too long: with 4 query frames its prompt takes \d+ positions of 2048"
    seen: list[int] = []
    monkeypatch.setattr(glus.model, "encode_clip", lambda _: seen.append(1))
    with pytest.raises(InputError, match=words):
        glus.segment(CLIP, fits_once)
    with pytest.raises(InputError, match=words):
        glus.segment(CLIP, fits_once, key_frames=[5])
    assert not seen
    monkeypatch.undo()
    assert glus.segment(CLIP[:1], fits_once).masks.shape[1] == 1


@pytest.mark.parametrize(
    "source",
    [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), [], 7],
)
def test_bad_arrays(glus: GLUS, source: Any) -> None:
    with pytest.raises(InputError):
        glus.segment(source, "a dog")


def test_bad_files(glus: GLUS, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.mp4"):
        glus.segment(tmp_path / "nowhere.mp4", "a dog")
    folder = write_folder(tmp_path / "clip", CLIP)
    cut = folder / "shot_11.png"
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(InputError, match=r"shot_11\.png is truncated"):
        glus.segment(folder, "a dog")
    cv2.imwrite(str(cut), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(InputError, match="all frames must have one size"):  # D18
        glus.segment(folder, "a dog")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, "device cuda:99 was asked for, but torch sees"),
        ({"dtype": "int8"}, "unknown dtype 'int8'; choose one of fp32, bf16, fp16"),
        ({"dtype": torch.int8}, "unknown dtype"),
        ({"dtype": torch.float64}, "unknown dtype"),
        ({"compat": "relaesed"}, "unknown compat preset"),
        ({"image_size": 100}, "image_size must be 256 or more"),
    ],
)
def test_bad_options(glus: GLUS, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    glus.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=words):
        GLUS.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", torch.bfloat16])
def test_supported_dtypes_run_on_the_cpu(glus: GLUS, result: SegmentResult, tmp_path: Path, dtype: Any) -> None:
    """D24, D51."""
    glus.save_pretrained(tmp_path)
    loaded = GLUS.from_pretrained(tmp_path, dtype=dtype, device="cpu")
    other = loaded.segment(CLIP, EXPRESSIONS)
    assert not other.failed.any()
    assert float((other.masks != result.masks).float().mean()) < 0.2
    assert loaded.model.device == torch.device("cpu")


# -- what a result can do ------------------------------------------------------------------------------------


def test_save_masks(result: SegmentResult, tmp_path: Path) -> None:
    root = result.save_masks(tmp_path / "masks")
    assert files_of(root) == {f"{e}/{name}.png" for e in range(3) for name in result.frame_names}
    for row in range(3):
        for index, name in enumerate(result.frame_names):
            image = cv2.imread(str(root / str(row) / f"{name}.png"), cv2.IMREAD_UNCHANGED)
            assert image.ndim == 2
            assert set(np.unique(image)) <= {0, 255}
            assert np.array_equal(image > 0, result.masks[row, index].numpy())


def test_results_that_cannot_be_written(glus: GLUS, result: SegmentResult, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        result.save_masks(tmp_path / "file" / "masks")
    with pytest.raises(OutputError, match="cannot write"):
        glus.save_pretrained(tmp_path / "file" / "model")


def test_to_rle(result: SegmentResult) -> None:
    codes = result.to_rle()
    assert [len(row) for row in codes] == [7, 7, 7]
    for row, masks in zip(codes, result.masks, strict=True):
        for code, mask in zip(row, masks, strict=True):
            assert isinstance(code["counts"], str)
            assert np.array_equal(decode_rle(code, 40, 56, "test"), mask.numpy())


def test_save_video(result: SegmentResult, tmp_path: Path) -> None:
    path = result.save_video(tmp_path / "out.mp4", fps=5)
    video = open_frames(path)
    assert len(video) == 7
    assert float(video.fps) == 5
    assert video[0].shape == (40, 56, 3)
    seen = np.abs(video[3].astype(int) - CLIP[3]).mean(-1)
    touched = result.masks[:, 3].any(0).numpy()
    assert seen[touched].mean() > seen[~touched].mean() + 10
    with pytest.raises(InputError, match="must end in"):
        result.save_video(tmp_path / "out.gif")


def test_images_of_another_size_work_end_to_end() -> None:
    glus = tiny_glus(tiny_config(448))
    assert glus.segment(CLIP[:3], EXPRESSIONS[:2]).masks.any()


# -- how a checkpoint wants to be used -----------------------------------------------------------------------


def test_what_a_checkpoint_has_learned_with_is_the_default(tmp_path: Path) -> None:
    learned = InferenceConfig(context_frames=2, query_frames=1, mem_stride=2)
    made = tiny_glus(dataclasses.replace(tiny_config(), inference=learned))
    made.save_pretrained(tmp_path / "model")
    saved = GLUS.from_pretrained(tmp_path / "model", device="cpu")
    assert saved.config.inference == learned
    by_default = saved.segment(CLIP, EXPRESSIONS[0])
    assert torch.equal(by_default.scores, saved.segment(CLIP, EXPRESSIONS[0], config=learned).scores)
    assert not torch.equal(by_default.scores, saved.segment(CLIP, EXPRESSIONS[0], config=InferenceConfig()).scores)
    streamed = torch.stack([step.scores for step in saved.stream(CLIP, EXPRESSIONS[0])], dim=1)
    torch.testing.assert_close(streamed, by_default.scores, rtol=0, atol=1e-5)

    def masks_of(name: str, *options: str) -> list[bytes]:
        write_video(tmp_path / "clip.mp4", CLIP, 5)
        model = ("--version", str(tmp_path / "model"), "--device", "cpu")
        video = str(tmp_path / "clip.mp4")
        out = tmp_path / name
        outputs = ("-o", f"{out}.mp4", "--masks", str(out))
        assert main(["segment", video, EXPRESSIONS[0], *outputs, *model, *options]) == 0
        return [path.read_bytes() for path in sorted(out.rglob("*.png"))]

    asked = ("--context_frame_num", "2", "--question_frame_num", "1", "--mem_stride", "2")
    assert masks_of("default") == masks_of("asked", *asked)
    assert masks_of("default") != masks_of("other", "--question_frame_num", "4", "--context_frame_num", "4")
