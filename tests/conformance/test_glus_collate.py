"""Training conversations, ids, labels and padding against `glus/collate.json`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glus.errors import InputError
from glus.text import prompts
from glus.text.labels import collate, label_conversation
from glus.text.tokenizer import GlusTokenizer


@pytest.fixture(scope="module")
def data(golden: Callable[[str], Path]) -> dict[str, Any]:
    return json.loads((golden("glus") / "collate.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(golden: Callable[[str], Path]) -> GlusTokenizer:
    facts = json.loads((golden("glus") / "tokenization.json").read_text())["tokenizer"]
    return GlusTokenizer((golden("glus") / facts["file"]).read_bytes(), facts["added_tokens"])


def rebuild(conversation: str, expression: str, context: int, rounds: int) -> str:
    """Find the drawn templates, round by round, and build the conversation from them with our code."""
    cleaned = prompts.clean_expression(expression, training=True)
    questions: list[int] = []
    answers: list[int] = []
    for _ in range(rounds):
        for q, a in itertools.product(range(len(prompts.QUESTIONS)), range(len(prompts.ANSWERS))):
            built = prompts.training_prompt(cleaned, [*questions, q], [*answers, a], context)
            if conversation.startswith(built):
                questions.append(q)
                answers.append(a)
                break
        else:
            raise AssertionError(f"round {len(questions)} fits no template: {conversation!r}")
    return prompts.training_prompt(cleaned, questions, answers, context)


def test_conversations(data: dict[str, Any]) -> None:
    assert data["batches"]
    for batch in data["batches"]:
        expressions = itertools.chain.from_iterable(batch["expressions"])
        conversations = itertools.chain.from_iterable(batch["conversations"])
        for expression, bare, prompt in zip(expressions, conversations, batch["prompts"], strict=True):
            assert prompts.wrap_images(bare) == prompt
            ours = rebuild(prompt, expression, batch["context_frames"], batch["question_frames"])
            assert ours == prompt


def test_batches(data: dict[str, Any], tokenizer: GlusTokenizer) -> None:
    for batch in data["batches"]:
        ours = collate(
            [[prompts.wrap_images(text) for text in sample] for sample in batch["conversations"]], tokenizer
        )
        assert ours.input_ids.tolist() == batch["input_ids"]
        assert ours.labels.tolist() == batch["labels"]
        assert ours.attention_mask.astype(int).tolist() == [
            [int(value) for value in row] for row in batch["attention_mask"]
        ]
        assert ours.offset.tolist() == batch["offset"]


def test_hostile(data: dict[str, Any], tokenizer: GlusTokenizer) -> None:
    """What the original's collate step rejects we reject; where it runs, ids and labels agree."""
    assert data["hostile"]
    for case in data["hostile"]:
        conversation = prompts.wrap_images(case["conversation"])
        if "error" in case:
            with pytest.raises(InputError):
                label_conversation(conversation, tokenizer)
        else:
            ids, labels = label_conversation(conversation, tokenizer)
            assert ids == case["input_ids"], case["expression"]
            assert labels == case["labels"], case["expression"]
