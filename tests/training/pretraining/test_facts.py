"""What pretraining tells a model of a video: against the video itself."""

from __future__ import annotations

import numpy as np
import pytest

from glus.data.synthetic import SyntheticConfig, SyntheticVideo, generate_video
from glus.data.synthetic.dice import Dice
from glus.data.synthetic.sentences import absent
from glus.training.pretraining import facts

SIDE = 8


@pytest.fixture(scope="module")
def video() -> SyntheticVideo:
    return generate_video(5, 1, SyntheticConfig(width=128, height=96, frames=12))


def test_shares_of_cells_add_up_to_the_area(video: SyntheticVideo) -> None:
    shares = facts.cell_shares(video.masks[:, 0], SIDE)
    assert shares.shape == (len(video.masks), SIDE, SIDE)
    np.testing.assert_allclose(shares.mean(axis=(1, 2)), video.masks[:, 0].mean(axis=(1, 2)), atol=1e-5)
    rows, columns = np.nonzero(video.masks[0, 0])
    top = np.unravel_index(shares[0].argmax(), (SIDE, SIDE))
    assert abs(top[0] - rows.mean() / 96 * SIDE) < 1.5
    assert abs(top[1] - columns.mean() / 128 * SIDE) < 1.5


def test_looks_and_claims_are_those_of_the_scene(video: SyntheticVideo) -> None:
    table = facts.looks(video)
    for thing, row in zip(video.scene.things, table, strict=True):
        names = (thing.colour, thing.shape, thing.texture, thing.size)
        told = [facts.LOOKS[i][value] for i, value in enumerate(row) if value != facts.UNKNOWN]
        assert told == list(names)[: len(told)]
    verdicts = facts.claims(video)
    assert verdicts.shape == (len(video.masks), len(facts.CLAIMS))
    assert set(np.unique(verdicts)) <= {-1.0, 0.0, 1.0}
    for sentence in video.sentences:
        if sentence.predicate in facts.CLAIMS:
            column = facts.CLAIMS.index(sentence.predicate)
            assert all(verdicts[target, column] == 1 for target in sentence.targets)


def test_a_cell_shows_the_object_that_covers_most_of_it(video: SyntheticVideo) -> None:
    owner = facts.shown(video, 0, SIDE)
    shares = facts.cell_shares(video.masks[:, 0], SIDE).reshape(len(video.masks), -1)
    for cell, number in enumerate(owner):
        if number < 0:
            assert shares[:, cell].max() <= facts.SEEN_SHARE
        else:
            assert shares[number, cell] == shares[:, cell].max() > facts.SEEN_SHARE
    table = np.arange(2 * len(video.masks)).reshape(-1, 2)
    spread = facts.per_cell(table, owner, -7)
    assert (spread[owner < 0] == -7).all()
    assert (spread[owner >= 0] == table[owner[owner >= 0]]).all()


def test_a_hint_says_where_whether_and_what(video: SyntheticVideo) -> None:
    look = facts.looks(video)[0]
    told = facts.hint(video.masks[0, 0], SIDE, look)
    assert told.shape == (facts.hint_size(SIDE * SIDE),)
    np.testing.assert_allclose(
        told[: SIDE * SIDE] ** 2, facts.cell_shares(video.masks[:1, 0], SIDE).ravel(), atol=1e-6
    )
    assert told[SIDE * SIDE] == 1
    assert told[SIDE * SIDE + 1] == 0
    assert told[SIDE * SIDE + 2 + look[0]] == 1
    assert told[SIDE * SIDE + 2 :].sum() == (look != facts.UNKNOWN).sum()
    empty = facts.hint(np.zeros_like(video.masks[0, 0]), SIDE, None)
    assert not empty.any()
    assert facts.no_hint(SIDE).sum() == facts.no_hint(SIDE)[SIDE * SIDE + 1] == 1


def test_paths_are_where_the_masks_are(video: SyntheticVideo) -> None:
    frames = [0, 5, 11]
    path = facts.paths(video, frames)
    height, width = video.masks.shape[2:]
    for number, masks in enumerate(video.masks[:, frames]):
        for mask, (seen, x, y, size) in zip(masks, path[number], strict=True):
            assert bool(seen) == bool(mask.any())
            if not seen:
                assert (x, y, size) == (0, 0, 0)
                continue
            rows, columns = np.nonzero(mask)
            assert columns.min() <= x * width <= columns.max() + 1
            assert rows.min() <= y * height <= rows.max() + 1
            assert size**2 * height * width == pytest.approx(mask.sum(), rel=1e-4)
            mirrored = np.nonzero(mask[:, ::-1])[1]
            assert mirrored.mean() + 0.5 == pytest.approx(width * (1 - x), abs=1e-3)


def test_every_claim_and_the_looks_it_names_have_a_number() -> None:
    assert len(set(facts.PREDICATES)) == len(facts.PREDICATES)
    config = SyntheticConfig(width=96, height=64, frames=12, max_sentences=24)
    for index in range(6):
        video = generate_video(8, index, config)
        table = facts.looks(video)
        for sentence in video.sentences:
            assert sentence.predicate in facts.PREDICATES
            named = np.array(facts.named(sentence.noun))
            assert (named != facts.UNKNOWN).sum() == len(sentence.noun.attributes)
            for target in sentence.targets:
                assert (table[target] == named)[named != facts.UNKNOWN].all()
    assert facts.named(None) == [facts.UNKNOWN] * 4


def test_an_absent_object_is_named_by_looks_that_nothing_has(video: SyntheticVideo) -> None:
    dice = Dice(0)
    for _ in range(50):
        sentence = absent(dice, video.scene.things)
        looks = [pair for pair in sentence.noun.attributes if pair[0] != "size"]
        assert len(looks) > 1
        assert not any(all(getattr(thing, k) == v for k, v in looks) for thing in video.scene.things)
        assert not facts.fitting(video, sentence.noun)
        assert not video.target(sentence).any()
