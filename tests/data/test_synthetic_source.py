"""Training samples made on the fly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from glus.data.sampling import SamplingRules
from glus.data.synthetic import SyntheticConfig, generate_video
from glus.data.synthetic.source import NO_SENTENCE, TRAINING_SERIES, SyntheticSource
from glus.data.synthetic.writer import SetArguments, write_set
from glus.errors import InputError
from glus.io import read_json

SOURCE = SyntheticSource(SyntheticConfig(width=96, height=64, frames=10), SamplingRules(expressions=2))


def test_a_sample_is_what_its_video_says() -> None:
    sample = SOURCE.draw(np.random.default_rng([0, 3]))
    series, index = map(int, sample.video.split("-"))
    assert series == TRAINING_SERIES
    video = generate_video(series, index, SOURCE.config)
    frames = [int(name) for name in sample.frames]
    assert frames == list(range(frames[0], frames[0] + 4))
    for exp_id, text, masks in zip(sample.exp_ids, sample.texts, sample.masks, strict=True):
        sentence = video.sentences[int(exp_id)]
        assert text == sentence.text
        assert (masks == video.target(sentence)[frames]).all()
    for frame, picture in zip(frames, sample.query, strict=True):
        assert (picture == video.frames[frame]).all()


def test_the_draw_depends_on_the_generator_alone() -> None:
    first, again, other = (SOURCE.draw(np.random.default_rng([0, number])) for number in (1, 1, 2))
    assert (first.video, first.texts, first.frames) == (again.video, again.texts, again.frames)
    assert first.video != other.video


def test_the_blind_control_sees_the_same_videos_without_the_sentences() -> None:
    blind = dataclasses.replace(SOURCE, expressions="blind")
    seen, unseen = (source.draw(np.random.default_rng([0, 3])) for source in (SOURCE, blind))
    assert (seen.video, seen.exp_ids) == (unseen.video, unseen.exp_ids)
    assert (seen.masks == unseen.masks).all()
    assert set(unseen.texts) == {NO_SENTENCE}
    assert NO_SENTENCE not in seen.texts


def test_blind_is_for_generated_videos_alone() -> None:
    pytest.importorskip("peft")
    from glus.errors import InputError
    from glus.training.build import build_source
    from glus.training.config import train_config

    data = {"refer_video_seg_data": "mevis", "sample_rates": "1", "expressions": "blind"}
    with pytest.raises(InputError, match="expressions blind is the control on generated videos"):
        build_source(train_config({"model": {"version": "x"}, "data": data}, "here"))
    config = train_config(
        {"model": {"version": "x"}, "data": {**data, "refer_video_seg_data": "synthetic"}}, "here"
    )
    source = build_source(config)
    assert isinstance(source, SyntheticSource)
    assert source.expressions == "blind"


def test_a_blind_set_differs_in_its_expressions_alone(tmp_path: Path) -> None:
    config = SyntheticConfig(width=96, height=80, frames=8)
    plain = write_set(tmp_path / "plain", SetArguments("valid_u", 1, 7, config))
    blind = write_set(tmp_path / "blind", SetArguments("valid_u", 1, 7, config, "blind"))
    assert (blind / "mask_dict.json").read_bytes() == (plain / "mask_dict.json").read_bytes()
    theirs, ours = (
        read_json(folder / "meta_expressions.json")["videos"]["syn7_00000"] for folder in (plain, blind)
    )
    assert {e["exp"] for e in ours["expressions"].values()} == {NO_SENTENCE}
    for key, expression in theirs["expressions"].items():
        assert ours["expressions"][key] == {**expression, "exp": NO_SENTENCE}
    assert "expressions" not in read_json(plain / "generator.json")["arguments"]
    with pytest.raises(InputError, match="other arguments"):
        write_set(tmp_path / "plain", SetArguments("valid_u", 1, 7, config, "blind"))


def test_a_set_of_what_the_first_frame_does_not_show(tmp_path: Path) -> None:
    config = SyntheticConfig(width=96, height=64, frames=10, max_sentences=24)
    folder = write_set(tmp_path, SetArguments("valid_u", 6, 7, config, absent_first=True))
    videos = read_json(folder / "meta_expressions.json")["videos"]
    masks = read_json(folder / "mask_dict.json")
    told = [expression for video in videos.values() for expression in video["expressions"].values()]
    everything = [generate_video(7, index, config) for index in range(6)]
    assert len(told) == sum(not v.target(s)[0].any() for v in everything for s in v.sentences) > 0
    assert all(masks[str(anno)][0] is None for expression in told for anno in expression["anno_id"])
    assert read_json(folder / "generator.json")["arguments"]["absent_first"] is True
