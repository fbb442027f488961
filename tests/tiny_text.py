"""A small tokenizer with LLaMA's settings, trained on the spot, so that tests need no files."""

from __future__ import annotations

import functools
import io

import sentencepiece

from glus.text import prompts
from glus.text.tokenizer import GlusTokenizer


@functools.cache
def sentencepiece_model() -> bytes:
    """A small sentencepiece model with LLaMA's settings."""
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


@functools.cache
def tiny_tokenizer(strip: bool = True) -> GlusTokenizer:
    """Added tokens in an order of their own: ids must come from the text."""
    base = int(sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model()).vocab_size())
    names = ["<im_end>", "[SEG]", "<im_patch>", "<im_start>"]
    return GlusTokenizer(sentencepiece_model(), {name: base + i for i, name in enumerate(names)}, strip)
