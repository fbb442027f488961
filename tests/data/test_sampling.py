"""What is drawn for training: from every layout, by the rules of the reference (4.3 to 4.5), or refused."""

from __future__ import annotations

import logging
import math
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from training_trees import (
    CLIPS,
    HEIGHT,
    PALETTE,
    PLACES,
    TRAINABLE,
    WIDTH,
    Clip,
    edit,
    palette_labels,
    write_labels,
    write_tree,
)

from glus.data.check import check
from glus.data.datasets import load_records
from glus.data.sampling import (
    ClipSample,
    RecordSource,
    SamplingRules,
    context_indices,
    open_records,
    parse_mixture,
    query_indices,
)
from glus.errors import InputError

LONG = CLIPS[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("training")
    for dataset in TRAINABLE:
        write_tree(root, dataset)
    return root


def draw(source: RecordSource, number: int = 0) -> ClipSample:
    return source.draw(np.random.default_rng([5, number]))


def clip_named(name: str) -> Clip:
    return next(clip for clip in CLIPS if clip.name == name)


def index_of(clip: Clip, picture: np.ndarray) -> int:
    """Which frame of `clip` a decoded picture is."""
    distance = [np.abs(picture.astype(int) - clip.picture(i)).mean() for i in range(clip.length)]
    assert min(distance) < 6
    return int(np.argmin(distance))


def expected_mask(dataset: str, clip: Clip, text: str, index: int) -> np.ndarray:
    things = dict(clip.sentences)[text]
    if dataset in PALETTE:
        return palette_labels(clip, index) == things[0]
    return np.logical_or.reduce([clip.mask(thing, index) for thing in things])


@pytest.mark.parametrize("dataset", TRAINABLE)
def test_every_layout_gives_its_frames_texts_and_masks(data: Path, dataset: str) -> None:
    source = open_records([(dataset, 1)], data)
    seen = Counter[str]()
    for number in range(12):
        sample = draw(source, number)
        clip = clip_named(sample.video)
        seen[clip.name] += 1
        assert sample.dataset == dataset
        first = clip.frames.index(sample.frames[0])
        assert list(sample.frames) == clip.frames[first : first + 4]
        assert [index_of(clip, picture) for picture in sample.query] == list(range(first, first + 4))
        assert len(sample.context) == 4
        assert sample.masks.shape == (len(sample.texts), 4, HEIGHT, WIDTH)
        assert sample.masks.dtype == np.uint8
        for text, masks in zip(sample.texts, sample.masks, strict=True):
            for offset, mask in enumerate(masks):
                np.testing.assert_array_equal(mask, expected_mask(dataset, clip, text, first + offset))
    assert set(seen) == {"long", "even"}


def test_a_sample_depends_on_the_generator_alone(data: Path) -> None:
    source = open_records([("mevis", 1), ("davis17", 2)], data)
    copy = pickle.loads(pickle.dumps(source))
    for number in (3, 0, 3):
        one, other = draw(source, number), draw(copy, number)
        assert (one.video, one.exp_ids, one.frames) == (other.video, other.exp_ids, other.frames)
        np.testing.assert_array_equal(one.masks, other.masks)
        assert all(np.array_equal(a, b) for a, b in zip(one.context, other.context, strict=True))
    others = {(s.video, s.exp_ids, s.frames) for s in (draw(source, n) for n in range(12))}
    assert len(others) > 6


def test_data_sets_are_drawn_by_weight_and_videos_uniformly(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GLUS-A's rates (4.5); a video with twice the expressions is drawn no more often."""
    weights = {"mevis": 40, "refyoutube_vos": 150, "davis17": 4, "revos": 30, "lvvis": 30}
    source = open_records(list(weights.items()), data)
    seen = Counter[tuple[str, str]]()
    monkeypatch.setattr(source, "_read", lambda part, records, *_: seen.update([(part.dataset, records[0].video)]))
    count = 6000
    for number in range(count):
        draw(source, number)
    for dataset, weight in weights.items():
        share = weight / sum(weights.values())
        drawn = sum(n for (name, _), n in seen.items() if name == dataset)
        assert abs(drawn / count - share) < 4 * math.sqrt(share * (1 - share) / count), dataset
        assert abs(seen[dataset, "long"] / drawn - 0.5) < 2.5 / math.sqrt(drawn), dataset


def test_expressions_without_replacement_or_all_in_file_order(data: Path) -> None:
    source = open_records([("mevis", 1)], data)
    orders = set()
    for number in range(60):
        sample = draw(source, number)
        if sample.video == "even":
            assert sample.exp_ids == ("0", "1")
        else:
            assert len(set(sample.exp_ids)) == len(sample.exp_ids) == 3
            orders.add(sample.exp_ids)
        table = {r.exp_id: r.text for r in load_records("mevis", data, "train") if r.video == sample.video}
        assert [table[e] for e in sample.exp_ids] == list(sample.texts)
    assert len(orders) > 10  # of 24


def test_frame_indices_cover_what_the_rules_allow() -> None:
    rng = np.random.default_rng(0)
    starts = Counter(query_indices(rng, 7, 4)[0] for _ in range(4000))
    assert set(starts) == {0, 1, 2, 3}
    assert all(abs(n - 1000) < 150 for n in starts.values())
    assert query_indices(rng, 4, 4) == [0, 1, 2, 3]
    borders = np.linspace(0, 11, 5, dtype=int)
    for position, (low, high) in enumerate(pairwise(borders)):
        drawn = Counter(context_indices(rng, 11, 4)[position] for _ in range(2000))
        assert set(drawn) == set(range(low, high))
        assert all(abs(n - 2000 / (high - low)) < 200 for n in drawn.values())
    assert context_indices(rng, 4, 4) == [0, 1, 2, 3]


def test_numbers_of_frames_and_expressions_are_configurable(data: Path) -> None:
    rules = SamplingRules(context_frames=2, query_frames=6, expressions=1)
    sample = draw(open_records([("mevis", 1)], data, rules))
    assert (len(sample.context), len(sample.query), len(sample.texts)) == (2, 6, 1)
    assert sample.masks.shape[:2] == (1, 6)
    assert len(sample.frames) == 6


def test_there_may_be_no_context(data: Path) -> None:
    """The paper's ablation without context frames."""
    sample = draw(open_records([("mevis", 1)], data, SamplingRules(context_frames=0)))
    assert (len(sample.context), len(sample.query)) == (0, 4)
    with pytest.raises(InputError, match="context_frames must be at least 0, found -1"):
        SamplingRules(context_frames=-1)


@pytest.mark.parametrize("name", ["query_frames", "expressions", "min_frames"])
def test_rules_need_at_least_one_of_each(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} must be at least 1, found 0"):
        SamplingRules(**{name: 0})


def test_left_out_videos_are_counted(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The original draws again and again until a video has expressions and frames."""
    with caplog.at_level(logging.INFO):
        open_records([("mevis", 1)], data)
    assert "1 of 3 videos left out, they have fewer than 4 frames: short" in caplog.text
    assert "1 of 4 videos have no expressions: silent" in caplog.text
    with pytest.raises(InputError, match="none of its 3 videos with expressions has 12 frames"):
        open_records([("mevis", 1)], data, SamplingRules(query_frames=12))


def test_overlapping_objects(data: Path) -> None:
    """D16: the union by default; the original sums to 2 where objects overlap."""
    for overlap, most in (("union", 1), ("sum", 2)):
        source = open_records([("mevis", 1)], data, SamplingRules(overlap=overlap))  # type: ignore[arg-type]
        both = [s.masks[s.texts.index("both")] for s in (draw(source, n) for n in range(20)) if "both" in s.texts]
        assert max(int(masks.max()) for masks in both) == most
        first = next(s for s in (draw(source, n) for n in range(20)) if "both" in s.texts)
        start = LONG.frames.index(first.frames[0])
        total = sum(LONG.mask(thing, start).astype(int) for thing in (1, 2))
        np.testing.assert_array_equal(first.masks[first.texts.index("both"), 0], np.minimum(total, most))
    with pytest.raises(InputError, match="overlap must be union or sum"):
        SamplingRules(overlap="max")  # type: ignore[arg-type]


def test_only_null_is_absent(data: Path) -> None:
    """D17: an object that is not in a frame has null there, and an empty mask."""
    sample = next(s for s in (draw(open_records([("lvvis", 1)], data), n) for n in range(50)) if s.video == "even")
    empty = [not mask.any() for mask in sample.masks[sample.exp_ids.index("1")]]
    start = int(sample.frames[0]) // 2
    assert empty == [(start + i) % 3 == 2 for i in range(4)]


def test_mevis_need_not_be_on_disk(tmp_path: Path) -> None:
    """D20."""
    write_tree(tmp_path, "davis17")
    assert draw(open_records(parse_mixture("davis17", "1"), tmp_path)).dataset == "davis17"
    assert not (tmp_path / "mevis").exists()


def test_expressions_of_nothing(tmp_path: Path) -> None:
    """ReVOS asks for things that are not there (`type_id` 2); elsewhere a missing anno_id is a fault."""

    def forget(meta: dict) -> None:  # type: ignore[type-arg]
        for expression in meta["videos"]["long"]["expressions"].values():
            expression["anno_id"] = []

    for dataset in ("revos", "mevis"):
        edit(write_tree(tmp_path, dataset, CLIPS[:1]) / PLACES[dataset][1], forget)
    sample = draw(open_records([("revos", 1)], tmp_path))
    assert sample.masks.shape == (3, 4, HEIGHT, WIDTH)
    assert not sample.masks.any()
    with pytest.raises(InputError, match=r"mevis, video long, expression 0 has no anno_id"):
        open_records([("mevis", 1)], tmp_path)


# --- mixtures -------------------------------------------------------------------------------------------------


def test_mixtures_of_the_recipes() -> None:
    assert parse_mixture("mevis||refyoutube_vos", "1,1") == [("mevis", 1.0), ("refyoutube_vos", 1.0)]
    names, rates = "mevis||refyoutube_vos||davis17||revos||lvvis", "40,150,4,30,30"
    assert [weight for _, weight in parse_mixture(names, rates)] == [40, 150, 4, 30, 30]
    assert parse_mixture(" mevis || lvvis ", " 1, 0.5 ") == [("mevis", 1.0), ("lvvis", 0.5)]


MIXTURES = {
    "unknown set (D41)": ("mevis||davis16", "1,1", r"unknown data set 'davis16'; known: mevis"),
    "no set": ("", "1", r"unknown data set ''"),
    "too few rates (D42)": ("mevis||lvvis", "1", r"2 data sets .* but 1 sample rates"),
    "too many rates (D42)": ("mevis", "1,2,3", r"1 data sets .* but 3 sample rates"),
    "rate no number": ("mevis", "one", r"sample rate 'one' .* is no positive number"),
    "rate missing": ("mevis||lvvis", "1,", r"sample rate '' in '1,'"),
    "rate zero": ("mevis||lvvis", "1,0", r"sample rate '0'"),
    "rate negative": ("mevis", "-1", r"sample rate '-1'"),
    "rate not finite": ("mevis", "inf", r"sample rate 'inf'"),
    "rate nan": ("mevis", "nan", r"sample rate 'nan'"),
    "set twice": ("mevis||mevis", "1,1", r"mevis is named twice"),
    "no training masks": ("reasonvos", "1", r"reasonvos has no masks to train on"),
    "wrong separator": ("mevis,lvvis", "1,1", r"unknown data set 'mevis,lvvis'"),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_bad_mixtures(name: str) -> None:
    names, rates, message = MIXTURES[name]
    with pytest.raises(InputError, match=message):
        parse_mixture(names, rates)


@pytest.mark.parametrize("weights", [[], [0.0], [math.nan], [1.0, -1.0]])
def test_bad_parts(data: Path, weights: list[float]) -> None:
    part = open_records([("mevis", 1)], data).parts[0]
    with pytest.raises(InputError, match=r"nothing to train on|sample rates must be positive"):
        RecordSource([type(part)(part.dataset, weight, part.videos, part.masks) for weight in weights])


# --- damage ---------------------------------------------------------------------------------------------------

Damage = Callable[[Path, Path, Path], object]


def expressions(change: Callable[[dict], object]) -> Damage:  # type: ignore[type-arg]
    return lambda frames, meta, masks: edit(meta, lambda value: change(value["videos"]["long"]))


def tracks(change: Callable[[list], object]) -> Damage:  # type: ignore[type-arg]
    """Change the masks of every annotation."""
    return lambda frames, meta, masks: edit(masks, lambda value: [change(entries) for entries in value.values()])


def of_entries(change: Callable[[dict], object]) -> Damage:  # type: ignore[type-arg]
    return tracks(lambda entries: [change(entry) for entry in entries if entry])


def small_picture(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((10, 12, 3), np.uint8))


def small_labels(path: Path) -> None:
    write_labels(path, np.ones((10, 12)))


def each(change: Callable[[Path], object], part: int, pattern: str) -> Damage:
    return lambda *parts: [change(path) for path in sorted(parts[part].glob(pattern))]


# name -> (data set, damage, message, found before anything is drawn)
DAMAGES: dict[str, tuple[str, Damage, str, bool]] = {
    "folder missing": ("mevis", lambda f, e, m: shutil.rmtree(f), r"11 frame files are missing", True),
    "frame missing": (
        "davis17", lambda f, e, m: (f / "long" / "00004.jpg").unlink(), r"1 frame files .*long/00004\.jpg", True,
    ),
    "expressions missing": ("revos", lambda f, e, m: e.unlink(), r"meta_expressions_train_\.json not found", True),
    "masks missing": ("lvvis", lambda f, e, m: m.unlink(), r"mask_dict\.json is missing; training needs", True),
    "palette masks missing": ("davis17", lambda f, e, m: shutil.rmtree(m), r"Annotations is missing", True),
    "palette folder missing": (
        "davis17", lambda f, e, m: shutil.rmtree(m / "long"), r"Annotations/long: folder missing", True,
    ),
    "no frames listed": ("mevis", expressions(lambda v: v.update(frames=[])), r"long\.frames is empty", True),
    "expression empty": (
        "mevis", expressions(lambda v: v["expressions"]["0"].update(exp=" . ")),
        r"long\.expressions\.0\.exp", True,
    ),
    "no expressions at all": ("lvvis", expressions(lambda v: v["expressions"].clear()), r"none of its 0", True),
    "anno_id unknown": (
        "mevis", expressions(lambda v: v["expressions"]["1"].update(anno_id=[77])),
        r"annotation 77 is missing", True,
    ),
    "too few masks": ("lvvis", tracks(list.pop), r"lvvis, video long.*10 masks for 11 frames", True),
    "masks cut": (
        "mevis", lambda f, e, m: m.write_bytes(m.read_bytes()[:-900]), r"ends too early, after \d+ bytes", True,
    ),
    "mask corrupt (D17)": (
        "mevis", of_entries(lambda e: e.update(counts=e["counts"][:-2])),
        r"mevis, video long, expression \d: .*mask_dict\.json, annotation \d+, frame \d+: corrupt RLE", False,
    ),
    "mask of another size (D17)": (
        "revos", of_entries(lambda e: e.update(size=[HEIGHT, WIDTH + 1])), r"corrupt RLE, .*fewer pixels", False,
    ),
    "mask of another, whole size (D18)": (
        "mevis", of_entries(lambda e: e.update(size=[WIDTH, HEIGHT])),
        r"mevis, video long, frame 000\d\d: annotation \d+ of .*mask_dict.json has 24x40 pixels, the frame 40x24",
        False,
    ),
    "frames of two sizes (D18)": (
        "mevis", lambda f, e, m: [small_picture(f / "long" / f"{n:05d}.jpg") for n in range(0, 22, 4)],
        r"mevis, video long: .*\.jpg is (12x10, .* is 40x24|40x24, .* is 12x10); all frames", False,
    ),
    "frame cut": (
        "lvvis", each(lambda p: p.write_bytes(p.read_bytes()[:-200]), 0, "long/*.jpg"),
        r"lvvis, video long: .*", False,
    ),
    "palette of another size (D18)": (
        "davis17", each(small_labels, 2, "long/*.png"),
        r"davis17, video long, frame 000\d\d: .*\.png has 12x10 pixels, the frame 40x24", False,
    ),
    "palette frame missing": (
        "refyoutube_vos", each(Path.unlink, 2, "long/*.png"),
        r"refyoutube_vos, video long: .*\.png: missing", False,
    ),
    "obj_id absent": (
        "refyoutube_vos", expressions(lambda v: [e.update(obj_id="3") for e in v["expressions"].values()]),
        r"refyoutube_vos, video long, expression \d: obj_id 3 is in no mask of .*Annotations/long", False,
    ),
    "obj_id zero": (
        "davis17", expressions(lambda v: v["expressions"]["0"].update(obj_id="0")),
        r"obj_id '0' is no number", True,
    ),
    "obj_id no number": (
        "davis17", expressions(lambda v: v["expressions"]["0"].update(obj_id="two")), r"obj_id 'two' is no", True,
    ),
    "obj_id missing": (
        "davis17", expressions(lambda v: v["expressions"]["0"].pop("obj_id")), r"expression 0 has no obj_id", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_found_by_the_check(tmp_path: Path, name: str) -> None:
    dataset, damage, message, at_once = DAMAGES[name]
    write_tree(tmp_path, dataset, [LONG])
    assert check(dataset, tmp_path, "train", deep=True).faults == []
    damage(*(tmp_path / part for part in PLACES[dataset]))
    opened = []

    def use() -> None:
        opened.append(open_records([(dataset, 1)], tmp_path))
        for number in range(8):
            draw(opened[0], number)

    with pytest.raises(InputError, match=message):
        use()
    assert bool(opened) != at_once
    try:
        assert check(dataset, tmp_path, "train", deep=True).faults
    except InputError:
        assert name == "expressions missing"


def test_an_object_that_comes_later_is_no_fault(tmp_path: Path) -> None:
    """Only an object that no frame of the video shows is one."""
    write_tree(tmp_path, "davis17", [LONG])
    folder = tmp_path / PLACES["davis17"][2] / "long"
    for name in LONG.frames[:-1]:
        write_labels(folder / f"{name}.png", np.zeros((HEIGHT, WIDTH)))
    write_labels(folder / f"{LONG.frames[-1]}.png", np.tile([1, 2], (HEIGHT, WIDTH // 2)))
    source = open_records([("davis17", 1)], tmp_path)
    assert {draw(source, n).masks.any() for n in range(12)} == {True, False}
