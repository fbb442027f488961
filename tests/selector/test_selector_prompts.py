"""Expressions that a selector takes or refuses, and conversations it cannot score."""

from __future__ import annotations

import pytest
import torch
from tiny_text import sentencepiece_model, tiny_tokenizer

from glus.config import LanguageConfig, VisionConfig
from glus.errors import InputError
from kfs import prompts
from kfs.merging import MergingConfig
from kfs.model import SelectorConfig, SelectorModel


def test_scoring_lowers_and_training_keeps() -> None:
    text = "  The dog  running To the left. "
    assert prompts.clean_expression(text) == "the dog running to the left."
    assert prompts.clean_expression(text, training=True) == "The dog  running To the left."


@pytest.mark.parametrize("text", ["", " . ", "a [SCORE] dog", "the <video>", "<image>", "a</s>", "USER: a dog"])
def test_reserved_text_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        prompts.check_expression(text)


def test_a_tokenizer_without_the_score_token_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[SCORE\]"):
        prompts.make_tokenizer(sentencepiece_model(), tiny_tokenizer().added_tokens, legacy=False)


@pytest.mark.parametrize("scores", [0, 2])
def test_a_conversation_needs_one_score(scores: int) -> None:
    config = SelectorConfig(
        language=LanguageConfig(8, 1, 2, 16, vocab_size=12),
        vision=VisionConfig(8, 1, 2, 16, image_size=28, patch_size=14, select_layer=-1, pool=1),
        merging=MergingConfig((4, 2, 1)),
        out_dim=4,
    )
    model = SelectorModel(config, score_id=11)
    with pytest.raises(ValueError, match="needs one"):
        model.assemble([[1, -200, 3, *[11] * scores]], torch.zeros(1, 7, 8))
