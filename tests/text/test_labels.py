"""Labels sit on the answers and nowhere else, for every template."""

from __future__ import annotations

import itertools

import pytest

from glus.errors import InputError
from glus.text import prompts
from glus.text.labels import IGNORE_INDEX, collate, label_conversation
from glus.text.tokenizer import GlusTokenizer

TEMPLATES = list(itertools.product(range(len(prompts.QUESTIONS)), range(len(prompts.ANSWERS))))


@pytest.mark.parametrize(("question", "answer"), TEMPLATES)
def test_labels_are_the_answers(tokenizer: GlusTokenizer, question: int, answer: int) -> None:
    prompt = prompts.training_prompt("the dog", [question, question], [answer, 0])
    ids, labels = label_conversation(prompt, tokenizer)
    assert ids == tokenizer.encode_with_images(prompt)
    assert len(labels) == len(ids)
    assert all(label in (IGNORE_INDEX, token) for label, token in zip(labels, ids, strict=True))
    kept = [label for label in labels if label != IGNORE_INDEX]
    wanted = prompts.ANSWERS[answer] + "</s>" + prompts.ANSWERS[0] + "</s>"
    assert kept == tokenizer.encode(wanted)[1:]


def test_long_rows_are_checked_too(tokenizer: GlusTokenizer) -> None:
    """The original skips its alignment check at 512 ids and more (D49)."""
    prompt = prompts.training_prompt("zebra " * 300, [0] * 4, [4] * 4)
    ids, labels = label_conversation(prompt, tokenizer)
    assert len(ids) > 512
    assert sum(label == tokenizer.seg_id for label in labels) == 4


def test_padding_and_offset(tokenizer: GlusTokenizer) -> None:
    short = prompts.training_prompt("a", [0], [4])
    long = prompts.training_prompt("a much longer expression", [2], [3])
    batch = collate([[short], [long, short], []], tokenizer)
    assert batch.offset.tolist() == [0, 1, 3, 3]
    lengths = batch.attention_mask.sum(1).tolist()
    assert lengths == [len(tokenizer.encode_with_images(text)) for text in (short, long, short)]
    for row, length in enumerate(lengths):
        assert (batch.input_ids[row, length:] == tokenizer.pad_id).all()
        assert (batch.labels[row, length:] == IGNORE_INDEX).all()
        assert not batch.attention_mask[row, length:].any()


@pytest.mark.parametrize("expression", ["an </s> inside", "<unk>", "so ASSISTANT: it is"])
def test_expression_that_breaks_the_rounds(tokenizer: GlusTokenizer, expression: str) -> None:
    prompt = prompts.training_prompt(expression, [0], [0], lower=False)
    with pytest.raises(InputError):
        label_conversation(prompt, tokenizer)


def test_open_conversation(tokenizer: GlusTokenizer) -> None:
    with pytest.raises(InputError, match="does not end"):
        label_conversation(prompts.window_prompt("a dog", 1), tokenizer)


def test_empty_batch(tokenizer: GlusTokenizer) -> None:
    with pytest.raises(InputError, match="at least one"):
        collate([[]], tokenizer)
