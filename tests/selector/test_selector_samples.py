"""What the selector is trained on: draws, templates, IoU files, what is refused (reference kfs.md, 5 and 8)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from selector_data import annotated, write_set
from tiny_selector import tiny_score_tokenizer, tiny_selector_config

from glus.config import from_dict
from glus.errors import InputError
from glus.text.tokenizer import IMAGE_INDEX
from glus.training.batches import StepSampler, sample_loader
from kfs.datasets import Annotated, parse_set, read_ious
from kfs.frames import segment_borders
from kfs.prompts import check_expression
from kfs.samples import (
    AnnotatedSet,
    Draw,
    SelectorData,
    SelectorSample,
    SelectorSet,
    SelectorSource,
    frame_counts,
    open_source,
)
from kfs.validation import held_out

VALUES = [0.1, 0.9, 0.4, 0.7, 0.2, 0.8] * 5


def source(videos: Sequence[Sequence[Annotated]], **data: Any) -> SelectorSource:
    return SelectorSource([AnnotatedSet("set", 1.0, videos)], SelectorData(**data))


def draws(one: SelectorSource, count: int = 40) -> list[Draw]:
    return [one.draw(np.random.default_rng([0, number]), number) for number in range(count)]


def test_one_reference_per_segment_and_the_target_among_them() -> None:
    drawn = draws(source([[annotated(VALUES)]], frame_range=(8, 12)))
    for draw in drawn:
        borders = segment_borders(len(VALUES), len(draw.references))
        for frame, low, high in zip(draw.references, borders[:-1], borders[1:], strict=True):
            assert low <= frame < high
        assert draw.target in draw.references
    assert len({draw.target for draw in drawn}) > 15


def test_the_number_of_references_follows_the_sample_number() -> None:
    """Defect 29: not a counter of each worker; the original's list begins again after 10000."""
    drawn = draws(source([[annotated(VALUES)]], frame_range=(8, 12)), 300)
    assert tuple(len(draw.references) for draw in drawn) == frame_counts(8, 12)[:300]
    assert max(Counter(frame_counts(8, 12)).values()) <= 10_000 / 5 + 50
    far = source([[annotated(VALUES)]]).draw(np.random.default_rng(0), 10_003)
    assert len(far.references) == frame_counts(8, 12)[3]
    free = draws(source([[annotated(VALUES)]], balance_sample=False), 200)
    assert {len(draw.references) for draw in free} == set(range(8, 13))
    assert [len(draw.references) for draw in free] != list(frame_counts(8, 12)[:200])


def test_short_videos_give_all_their_frames_and_the_random_policy_any() -> None:
    assert {draw.references for draw in draws(source([[annotated(VALUES[:5])]]))} == {(0, 1, 2, 3, 4)}
    drawn = draws(source([[annotated(VALUES)]], sample_policy="random"))
    assert all(list(draw.references) == sorted(set(draw.references)) for draw in drawn)
    borders = [segment_borders(len(VALUES), len(draw.references)) for draw in drawn]
    assert any(d.references[1] < b[1] for d, b in zip(drawn, borders, strict=True)), "not one per segment"


def test_frames_without_an_iou_are_never_targets() -> None:
    """Defect 21: what annotation left out (null) is left out here; an expression needs an IoU at the target."""
    half: list[float | None] = [value if i % 2 else None for i, value in enumerate(VALUES)]
    once: list[float | None] = [None] * 29 + [0.5]
    for draw in draws(source([[annotated(half, exp_id="0"), annotated(once, exp_id="1")], [annotated(once)]])):
        assert draw.expressions
        assert all(one.ious[draw.target] is not None for one in draw.expressions)
        assert draw.target in draw.references
        assert list(draw.references) == sorted(set(draw.references))
    only = draws(source([[annotated(once)]]))
    assert {draw.target for draw in only} == {29}
    assert tuple(len(draw.references) for draw in only) == frame_counts(8, 12)[: len(only)]


def test_expressions_come_without_replacement_and_sets_by_weight() -> None:
    six = [annotated(VALUES, exp_id=str(number)) for number in range(6)]
    ids = [tuple(one.record.exp_id for one in draw.expressions) for draw in draws(source([six]))]
    assert all(len(set(drawn)) == 3 for drawn in ids)
    assert len(set(ids)) > 10
    pair = [AnnotatedSet(name, weight, [[annotated(VALUES)]]) for name, weight in (("a", 1.0), ("b", 4.0))]
    counts = Counter(draw.name for draw in draws(SelectorSource(pair, SelectorData()), 1000))
    assert 0.75 < counts["b"] / 1000 < 0.85
    with pytest.raises(InputError, match="must be positive numbers"):
        SelectorSource([AnnotatedSet("a", 0.0, [[annotated(VALUES)]])], SelectorData())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    write_set(root, "train", range(3), 9, ("The RED  one.", "is it red?"))
    return root


def data_of(tree: Path, **changes: Any) -> SelectorData:
    content = {
        "dataset_dir": str(tree),
        "rvos_seg_data": "mevis_train",
        "iou_path": str(tree / "ious_train"),
        "frame_range": [3, 5],
    }
    return from_dict(SelectorData, {**content, **changes}, "test")


def samples_of(tree: Path, seed: int = 0, **changes: Any) -> SelectorSet:
    return SelectorSet(open_source(data_of(tree, **changes)), tiny_score_tokenizer(), tiny_selector_config(), seed)


def same(one: SelectorSample, other: SelectorSample) -> bool:
    plain = ("rows", "labels", "images", "dataset", "video", "exp_ids", "frames")
    return all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("pixels", "targets")) and all(
        getattr(one, n) == getattr(other, n) for n in plain
    )


def test_samples_are_the_same_for_any_number_of_workers(tree: Path) -> None:
    """Defect 28: a sample is a function of the seed and its number alone."""
    sampler = StepSampler(0, 3, accumulation=2, batch=2, world=1, rank=0)
    alone = [one for part in sample_loader(samples_of(tree), sampler) for one in part]
    workers = [one for part in sample_loader(samples_of(tree), sampler, 2) for one in part]
    assert all(same(one, other) for one, other in zip(alone, workers, strict=True))
    assert same(samples_of(tree)[5], alone[5])
    assert not all(same(samples_of(tree, seed=1)[number], alone[number]) for number in range(3))


def test_a_sample_is_what_was_drawn(tree: Path) -> None:
    samples, tokenizer = samples_of(tree), tiny_score_tokenizer()
    for number in range(6):
        sample, draw = samples[number], samples.source.draw(np.random.default_rng([0, number]), number)
        assert sample.exp_ids == tuple(one.record.exp_id for one in draw.expressions)
        assert set(sample.exp_ids) <= {"00", "01"}, "ids are text: defect 19"
        assert sample.video.startswith("v_")
        assert len(sample.pixels) == len(draw.references), "each frame once, the target among them"
        assert [draw.references[i] for i in sample.images] == [*draw.references, draw.target]
        for row, target, one in zip(sample.rows, sample.targets, draw.expressions, strict=True):
            assert list(row).count(IMAGE_INDEX) == len(sample.images)
            assert list(row).count(tokenizer.added_id("[SCORE]")) == 1
            assert float(target) == pytest.approx(one.ious[draw.target])


def test_templates_vary_and_text_is_normalised_as_in_scoring(tree: Path) -> None:
    """Defect 33, with the switch that brings the original's back."""
    tokenizer = tiny_score_tokenizer()

    def said(**changes: Any) -> set[str]:
        samples = samples_of(tree, **changes)
        rows = [row for number in range(30) for row in samples[number].rows]
        return {tokenizer.decode(token for token in row if token != IMAGE_INDEX) for row in rows}

    ours = said()
    answers = {text.split("ASSISTANT:")[1] for text in ours}
    assert len(answers) == 4
    assert {ending in text for text in ours for ending in ("a confidence score", "output confidence")} == {
        True,
        False,
    }
    assert not any("RED" in text for text in ours)
    assert any("the the red one." in text for text in ours)
    assert any("The RED  one." in text for text in said(normalise_text=False))


def test_rates_follow_from_the_data_sets(tree: Path) -> None:
    """Defect 16: as many as there are sets, without being told."""
    assert [one.weight for one in open_source(data_of(tree)).sets] == [3]
    given = data_of(tree, rvos_sample_ratio="7")
    assert [one.weight for one in open_source(given).sets] == [7]
    for wrong, words in (("9||3", "1 data sets but 2 weights"), ("x", "weights are numbers")):
        with pytest.raises(InputError, match=words):
            open_source(data_of(tree, rvos_sample_ratio=wrong))
    with pytest.raises(InputError, match="named twice"):
        open_source(data_of(tree, rvos_seg_data="mevis_train||mevis_train"))
    with pytest.raises(InputError, match="1 data sets but 2 folders"):
        open_source(data_of(tree, iou_path="a||b"))


def test_names_of_data_sets() -> None:
    assert parse_set("refytvos_train") == ("refyoutube_vos", "train")
    assert parse_set("mevis:mine") == ("mevis", "mine")
    for name in ("mevis", "mevis:", "other:train"):
        with pytest.raises(InputError, match="unknown data set"):
            parse_set(name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[0.5, 0.5]", "2 IoUs for 9 frames"),
        ("[0, 0, 0, 0, NaN, 0, 0, 0, 0]", "frame 4 is nan, not a number from 0 to 1"),
        ("[0, 0, 0, 0, 0, 0, 0, 0, 1.5]", r"frame 8 is 1\.5"),
        ('[0, 0, "x", 0, 0, 0, 0, 0, 0]', r"field \[2\] must be int or float"),
        ("{}", "must be list"),
        ("[0, ", "not valid JSON"),
    ],
)
def test_bad_iou_files_are_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "0.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"0\.json.*{words}"):
        read_ious(path, 9)


def test_bad_folders_of_iou_files_are_named(tmp_path: Path) -> None:
    ious = write_set(tmp_path, "train", [1], 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no IoU file for any of 2 expressions"):
        open_source(data_of(tmp_path, iou_path=str(tmp_path / "empty")))
    with pytest.raises(InputError, match=r"no folder of IoU files at .*nowhere"):
        open_source(data_of(tmp_path, iou_path=str(tmp_path / "nowhere")))
    unknown = ious / "v_1/0.json"
    unknown.write_text("[0, 0, 0, 0]")  # 00 and 0 are two expressions
    with pytest.raises(InputError, match=r"v_1/0\.json: no expression 0 of a video v_1"):
        open_source(data_of(tmp_path))
    unknown.unlink()
    other = ious / "of_another_set/0.json"
    other.parent.mkdir()
    other.write_text("[0, 0]")
    with pytest.raises(InputError, match="no expression 0 of a video of_another_set"):
        open_source(data_of(tmp_path))
    for protocol in ("mevis", "refytvos"):  # several sets in one folder
        (ious / f"annotation-{protocol}.json").write_text('{"absent": "one"}')
    assert len(open_source(data_of(tmp_path)).sets) == 1
    (ious / "v_1/00.json").write_text(json.dumps([None] * 4))
    sets = open_source(data_of(tmp_path)).sets
    assert [one.record.exp_id for video in sets[0].videos for one in video] == ["01"]
    (tmp_path / "mevis/train/JPEGImages/v_1/00002.jpg").unlink()
    for use in (lambda: open_source(data_of(tmp_path)), lambda: held_out("mevis_train", tmp_path, ious, 8)):
        with pytest.raises(InputError, match=r"data set mevis: 1 frame files are missing, .*00002\.jpg"):
            use()


@pytest.mark.parametrize("text", ["the [SCORE] one", "a <video>", "an <image>", " "])
def test_expressions_that_would_break_the_prompt_are_refused(tmp_path: Path, text: str) -> None:
    """Defect 34; `||` breaks nothing here."""
    assert check_expression("this || that") == "this || that"
    write_set(tmp_path, "train", [1], 4)
    meta = tmp_path / "mevis/train/meta_expressions.json"
    meta.write_text(meta.read_text().replace("the red one", text))
    with pytest.raises(InputError, match=r"videos?[ .]v_1"):
        open_source(data_of(tmp_path))


def test_a_conversation_that_does_not_fit_is_refused(tree: Path) -> None:
    """The original never looks."""
    config = tiny_selector_config()
    short = from_dict(type(config.language), {"max_positions": 100}, "test")
    samples = SelectorSet(
        open_source(data_of(tree)), tiny_score_tokenizer(), type(config)(short, config.vision, config.merging), 0
    )
    with pytest.raises(InputError, match=r"video v_\d, expression 0\d: the conversation takes \d+ positions"):
        samples[0]


def test_wrong_ranges_are_refused() -> None:
    for wrong in ((0, 3), (5, 4), (3,)):
        with pytest.raises(InputError, match="frame_range"):
            SelectorData(frame_range=wrong)
