"""Training samples for the tiny model."""

from __future__ import annotations

import random

import numpy as np
import torch
from tiny import EXPRESSIONS, tiny_clip

from glus.api import GLUS
from glus.data.transforms import clip_image, sam_image
from glus.text.labels import label_conversation
from glus.text.prompts import training_prompt
from glus.training.forward import TrainingSample


def tiny_sample(
    glus: GLUS, expressions: int = 3, context: int = 2, queries: int = 3, seed: int = 0, video: str = "v0"
) -> TrainingSample:
    """A sample with targets that hold a foreground; its video is `tiny_clip` number `seed`."""
    clip = tiny_clip(context + queries, seed=seed)
    config = glus.model.config
    draws = random.Random(seed)
    rows = []
    for text in EXPRESSIONS[:expressions]:
        questions = [draws.randrange(4) for _ in range(queries)]
        answers = [draws.randrange(4) for _ in range(queries)]
        rows.append(label_conversation(training_prompt(text, questions, answers, context), glus.tokenizer)[0])
    targets = np.random.default_rng(seed).random((expressions, queries, *clip.shape[1:3])) < 0.3
    return TrainingSample(
        rows=tuple(rows),
        clip_pixels=torch.stack([clip_image(frame, config.vision.image_size) for frame in clip]),
        sam_pixels=torch.stack([sam_image(frame, config.sam2.image_size) for frame in clip[context:]]),
        targets=torch.from_numpy(targets),
        dataset="mevis",
        video=video,
        exp_ids=tuple(str(i) for i in range(expressions)),
        frames=tuple(f"{i:05d}" for i in range(queries)),
    )
