"""A small sentencepiece model with LLaMA's settings, trained on the spot, so that unit tests need no files."""

from __future__ import annotations

import io

import pytest
import sentencepiece

from glus.text import prompts
from glus.text.tokenizer import GlusTokenizer


@pytest.fixture(scope="session")
def model_bytes() -> bytes:
    writer = io.BytesIO()
    sentences = [prompts.SYSTEM, *prompts.QUESTIONS, *prompts.ANSWERS, prompts.CONTEXT_REQUEST, "USER: ASSISTANT:"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 4),
        model_writer=writer,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return writer.getvalue()


@pytest.fixture(scope="session")
def vocabulary(model_bytes: bytes) -> int:
    return int(sentencepiece.SentencePieceProcessor(model_proto=model_bytes).vocab_size())


@pytest.fixture(scope="session")
def tokenizer(model_bytes: bytes, vocabulary: int) -> GlusTokenizer:
    """Added tokens in an order of their own: ids must come from the text."""
    names = ["<im_end>", "[SEG]", "<im_patch>", "<im_start>"]
    return GlusTokenizer(model_bytes, {name: vocabulary + i for i, name in enumerate(names)})
