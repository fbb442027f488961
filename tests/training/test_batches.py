"""Samples by number: pure, the same for any number of workers, and with the work each needs only."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_clip, tiny_config
from tiny_text import tiny_tokenizer
from training_trees import write_tree

from glus.config import Behaviour
from glus.data.sampling import ClipSample, SampleSource, open_records, parse_mixture
from glus.data.transforms import clip_image, sam_image
from glus.errors import InputError
from glus.text.labels import label_conversation
from glus.text.prompts import ANSWERS, QUESTIONS, training_prompt
from glus.text.tokenizer import IMAGE_INDEX
from glus.training import batches
from glus.training.batches import StepSampler, TrainingSet, draw_row, sample_loader, step_numbers
from glus.training.forward import TrainingSample


@dataclass(frozen=True)
class Clips:
    """A source without files: videos of random numbers, with two expressions."""

    texts: tuple[str, ...] = (" The Dog that runs.", "a cat")
    context: int = 2
    query: int = 3

    def draw(self, rng: np.random.Generator) -> ClipSample:
        video = int(rng.integers(1000))
        clip = tiny_clip(self.context + self.query, seed=video)
        shape = (len(self.texts), self.query, *clip.shape[1:3])
        return ClipSample(
            dataset="mevis",
            video=f"v{video}",
            exp_ids=tuple(str(i) for i in range(len(self.texts))),
            texts=self.texts,
            context=tuple(clip[: self.context]),
            query=tuple(clip[self.context :]),
            masks=(rng.random(shape) < 0.3).astype(np.uint8),
            frames=tuple(f"{i:05d}" for i in range(self.query)),
        )


def training_set(source: SampleSource | None = None, seed: int = 3, **behaviour: bool) -> TrainingSet:
    config = tiny_config(behaviour=Behaviour(**behaviour))  # type: ignore[arg-type]
    return TrainingSet(source or Clips(), tiny_tokenizer(), config, seed)


def same(one: TrainingSample, other: TrainingSample) -> bool:
    tensors = ("clip_pixels", "sam_pixels", "targets")
    plain = ("rows", "dataset", "video", "exp_ids", "frames")
    return all(torch.equal(getattr(one, n), getattr(other, n)) for n in tensors) and all(
        getattr(one, n) == getattr(other, n) for n in plain
    )


def test_a_sample_holds_what_the_source_drew() -> None:
    samples = training_set()
    clip, sample = samples.clip(5), samples[5]
    vision, sam = samples.config.vision, samples.config.sam2
    assert (sample.dataset, sample.video, sample.exp_ids) == (clip.dataset, clip.video, clip.exp_ids)
    assert sample.frames == clip.frames
    frames = (*clip.context, *clip.query)
    assert torch.equal(sample.clip_pixels, torch.stack([clip_image(f, vision.image_size) for f in frames]))
    assert torch.equal(sample.sam_pixels, torch.stack([sam_image(f, sam.image_size) for f in clip.query]))
    np.testing.assert_array_equal(sample.targets.numpy(), clip.masks)
    for row in sample.rows:
        assert row.count(IMAGE_INDEX) == 5
        assert list(row).count(samples.tokenizer.seg_id) == 3


def test_rows_are_conversations_about_the_cleaned_text() -> None:
    """Every pair of templates, drawn per round (reference glus.md 3.4), and no other conversation."""
    samples = training_set(Clips(texts=(" The Dog that runs.",), query=1))
    known = {
        tuple(label_conversation(training_prompt("The Dog that runs", [q], [a], 2), samples.tokenizer)[0]): (q, a)
        for q, a in itertools.product(range(len(QUESTIONS)), range(len(ANSWERS)))
    }
    drawn = Counter(known[tuple(samples[number].rows[0])] for number in range(400))
    assert set(drawn) == set(known.values())
    assert max(drawn.values()) < 60  # 20 expected


def test_rounds_have_templates_of_their_own() -> None:
    samples = training_set(Clips(query=3))
    rng = np.random.default_rng(0)
    rows = [draw_row("a cat", 3, 2, samples.tokenizer, samples.config.behaviour, rng) for _ in range(30)]
    texts = [samples.tokenizer.decode(i for i in row if i != IMAGE_INDEX) for row in rows]
    assert {text.count("Can you segment") for text in texts} >= {0, 1, 2}
    assert {text.count("it is [SEG]") for text in texts} >= {0, 1, 2}


@pytest.mark.parametrize(("strip_period", "text"), [(True, "The Dog that runs"), (False, "The Dog that runs.")])
@pytest.mark.parametrize("lower_case", [True, False])
def test_the_text_switches_of_the_model_hold_in_training(strip_period: bool, text: str, lower_case: bool) -> None:
    samples = training_set(strip_period=strip_period, lower_case=lower_case)
    rng = np.random.default_rng(0)
    row = draw_row(" The Dog that runs.", 1, 2, samples.tokenizer, samples.config.behaviour, rng)
    rows = [
        label_conversation(training_prompt(text, [q], [a], 2, lower_case), samples.tokenizer)[0]
        for q, a in itertools.product(range(len(QUESTIONS)), range(len(ANSWERS)))
    ]
    assert row in rows


def test_context_frames_never_get_sam_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """D28, counted: three query frames make three SAM-2 inputs, five frames five CLIP inputs."""
    calls = Counter[str]()
    for name in ("sam_image", "clip_image"):
        make = getattr(batches, name)
        monkeypatch.setattr(batches, name, lambda *a, make=make, name=name: calls.update([name]) or make(*a))
    sample = training_set(Clips(texts=("a", "b", "c")))[0]
    assert calls == {"sam_image": 3, "clip_image": 5}
    assert len(sample.sam_pixels) == 3


def test_a_sample_is_a_function_of_seed_and_number() -> None:
    one, other = training_set(), training_set()
    for number in (7, 2, 7):
        assert same(one[number], other[number])
    assert not same(one[7], one[8])
    assert not same(one[7], training_set(seed=4)[7])
    assert len({one.clip(n).video for n in range(40)}) > 30


def test_steps_use_up_the_numbers() -> None:
    """Over ranks and micro-batches: each number once, in blocks of a step."""
    world, accumulation, batch = 3, 4, 2
    for step in range(3):
        numbers = [
            number
            for rank in range(world)
            for micro in step_numbers(step, accumulation=accumulation, batch=batch, world=world, rank=rank)
            for number in micro
        ]
        size = world * accumulation * batch
        assert sorted(numbers) == list(range(step * size, (step + 1) * size))
    assert step_numbers(1, accumulation=2, batch=2, world=2, rank=1) == [[10, 11], [14, 15]]


def sampler(start: int, stop: int, batch: int = 2) -> StepSampler:
    return StepSampler(start, stop, accumulation=2, batch=batch, world=2, rank=1)


def test_a_resumed_run_sees_the_same_batches() -> None:
    whole, rest = list(sampler(0, 5)), list(sampler(3, 5))
    assert whole[-len(rest) :] == rest
    assert len(rest) == len(sampler(3, 5)) == 4
    assert len(whole) == len(sampler(0, 5)) == 10


def test_workers_change_nothing() -> None:
    plain, spread = (list(sample_loader(training_set(), sampler(1, 4), workers)) for workers in (0, 2))
    assert [len(batch) for batch in plain] == [2] * 6
    assert all(same(a, b) for x, y in zip(plain, spread, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_text_is_an_input_error_also_from_a_worker(workers: int) -> None:
    loader = sample_loader(training_set(Clips(texts=("a cat", "[SEG]"))), sampler(0, 1), workers)
    with pytest.raises(InputError, match=r"mevis, video v\d+, expression 1 contains \[SEG\]"):
        list(loader)


def test_empty_expression() -> None:
    with pytest.raises(InputError, match="expression 0 is empty"):
        training_set(Clips(texts=(" .",)))[0]


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="seed must be at least 0"):
        training_set(seed=-1)
    with pytest.raises(InputError, match="at least 1, found 2 and 0"):
        sampler(0, 1, batch=0)


def test_real_files_through_workers(tmp_path: Path) -> None:
    """Mask store and palettes in loader workers: the same batches as in one process."""
    for dataset in ("mevis", "davis17"):
        write_tree(tmp_path, dataset)
    source = open_records(parse_mixture("mevis||davis17", "1,1"), tmp_path)
    samples = training_set(source)
    plain, spread = (list(sample_loader(samples, sampler(0, 3), workers)) for workers in (0, 2))
    assert all(same(a, b) for x, y in zip(plain, spread, strict=True) for a, b in zip(x, y, strict=True))
    assert {sample.dataset for batch in plain for sample in batch} == {"mevis", "davis17"}
