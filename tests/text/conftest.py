"""The tokenizer the text tests share."""

from __future__ import annotations

import pytest
from tiny_text import sentencepiece_model, tiny_tokenizer

from glus.text.tokenizer import GlusTokenizer


@pytest.fixture(scope="session")
def model_bytes() -> bytes:
    return sentencepiece_model()


@pytest.fixture(scope="session")
def tokenizer() -> GlusTokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def vocabulary(tokenizer: GlusTokenizer) -> int:
    return len(tokenizer) - len(tokenizer.added_tokens)
