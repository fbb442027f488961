"""A model and samples small enough to pretrain in a test."""

from __future__ import annotations

import dataclasses

from tiny import tiny_config
from tiny_text import tiny_tokenizer

from glus.config import Behaviour, ModelConfig
from glus.data.synthetic import SyntheticConfig
from glus.training.pretraining.samples import PretrainingConfig, PretrainingSet, Side

SMALL = PretrainingConfig(
    pictures=2,
    sentences=3,
    objects=3,
    mask_frames=2,
    video=SyntheticConfig(width=96, height=64, frames=8, max_sentences=12),
)


def sizes() -> ModelConfig:
    config = tiny_config(behaviour=Behaviour(token_pooling="grid", clip_view="squash"), memory_dropout=0.0)
    language = dataclasses.replace(config.language, num_layers=6)
    return dataclasses.replace(config, language=language, vision=dataclasses.replace(config.vision, num_layers=4))


def samples(side: Side, config: PretrainingConfig = SMALL, seed: int = 0) -> PretrainingSet:
    return PretrainingSet(config, sizes(), tiny_tokenizer(), seed, side)
