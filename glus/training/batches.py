"""Sample numbers of every step, and numbers to model inputs (reference glus.md 3.4, 4.7, 4.8).

Sample `number` of a run is a pure function of (seed, number), and the numbers of a step one of (step, rank). So
the data position of a run is its step: nothing else has to be stored to resume, and loader workers do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from glus.config import Behaviour, ModelConfig
from glus.data.sampling import ClipSample, SampleSource
from glus.data.transforms import clip_image, sam_image
from glus.errors import InputError
from glus.text.labels import label_conversation
from glus.text.prompts import ANSWERS, QUESTIONS, check_expression, clean_expression, training_prompt
from glus.text.tokenizer import GlusTokenizer
from glus.training.forward import TrainingSample


class TrainingSet(Dataset[TrainingSample]):
    """Training samples by number, without end.

    Args:
        seed: of the run, from 0; another seed gives other samples throughout.
    """

    def __init__(self, source: SampleSource, tokenizer: GlusTokenizer, config: ModelConfig, seed: int) -> None:
        if seed < 0:
            raise InputError(f"seed must be at least 0, found {seed}")
        self.source = source
        self.tokenizer = tokenizer
        self.config = config
        self.seed = seed

    def clip(self, number: int) -> ClipSample:
        """The frames, texts and masks of a sample, before they become model inputs."""
        return self.source.draw(self._rng(number))

    def __getitem__(self, number: int) -> TrainingSample:
        """Sample `number`, from 0.

        Raises:
            InputError: see `SampleSource.draw`, or an expression that cannot be asked for.
        """
        rng = self._rng(number)
        return self.sample(self.source.draw(rng), rng)

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, number])

    def sample(self, clip: ClipSample, rng: np.random.Generator) -> TrainingSample:
        """Model inputs of a clip; `rng` draws the question and answer template of each round (3.4)."""
        where = f"{clip.dataset}, video {clip.video}, expression"
        rows = [
            draw_row(
                check_expression(text, f"{where} {exp_id}"),
                *(len(clip.query), len(clip.context), self.tokenizer, self.config.behaviour, rng),
            )
            for exp_id, text in zip(clip.exp_ids, clip.texts, strict=True)
        ]
        vision, sam, view = self.config.vision, self.config.sam2, self.config.behaviour.clip_view
        frames = (*clip.context, *clip.query)
        return TrainingSample(
            rows=tuple(rows),
            clip_pixels=torch.stack([clip_image(frame, vision.image_size, view) for frame in frames]),
            sam_pixels=torch.stack([sam_image(frame, sam.image_size) for frame in clip.query]),
            targets=torch.from_numpy(np.ascontiguousarray(clip.masks)),
            dataset=clip.dataset,
            video=clip.video,
            exp_ids=clip.exp_ids,
            frames=clip.frames,
        )


def draw_row(
    text: str,
    rounds: int,
    context_frames: int,
    tokenizer: GlusTokenizer,
    behaviour: Behaviour,
    rng: np.random.Generator,
) -> list[int]:
    """Token ids of one conversation, as `label_conversation` gives them; `rng` draws its templates."""
    text = clean_expression(text, training=True) if behaviour.strip_period else text.strip()
    questions = [int(i) for i in rng.integers(len(QUESTIONS), size=rounds)]
    answers = [int(i) for i in rng.integers(len(ANSWERS), size=rounds)]
    prompt = training_prompt(text, questions, answers, context_frames, behaviour.lower_case)
    return label_conversation(prompt, tokenizer)[0]


def step_numbers(step: int, *, accumulation: int, batch: int, world: int, rank: int) -> list[list[int]]:
    """Sample numbers of optimizer step `step` (from 0) on one rank: `accumulation` micro-batches of `batch`.

    Over all ranks the steps use up the numbers 0, 1, 2, ... without gap or repetition.
    """
    first = [((step * accumulation + micro) * world + rank) * batch for micro in range(accumulation)]
    return [list(range(number, number + batch)) for number in first]


class StepSampler(Sampler[list[int]]):
    """The micro-batches of steps `start` to `stop - 1` on one rank, for `DataLoader(batch_sampler=...)`.

    Raises:
        InputError: `accumulation` or `batch` below 1.
    """

    def __init__(self, start: int, stop: int, *, accumulation: int, batch: int, world: int, rank: int) -> None:
        if min(accumulation, batch) < 1:
            raise InputError(f"accumulation and batch must be at least 1, found {accumulation} and {batch}")
        self.steps = range(start, stop)
        self.accumulation, self.batch, self.world, self.rank = accumulation, batch, world, rank

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield from step_numbers(
                step, accumulation=self.accumulation, batch=self.batch, world=self.world, rank=self.rank
            )

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation


def sample_loader(
    samples: Dataset[Any],
    sampler: StepSampler,
    workers: int = 0,
    pin_memory: bool = False,
    collate: Callable[[list[Any]], Any] = list,
) -> DataLoader:
    """Micro-batches in order, as lists of samples or what `collate` makes of them.

    The same whatever the number of workers; the global generators are left alone.
    """
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
        # Without a generator of its own, starting the workers would draw from the run's.
        generator=torch.Generator(),
    )


def _one_thread(worker: int) -> None:
    """Workers share the processors with the trainer: one thread each, for torch and for OpenCV."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
