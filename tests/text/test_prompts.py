"""Expressions (cleaning, refusal) and the sliding window."""

from __future__ import annotations

import pytest

from glus.errors import InputError
from glus.text import prompts
from glus.text.tokenizer import GlusTokenizer


@pytest.mark.parametrize(
    ("text", "inference", "training"),
    [
        ("A dog.", "A dog", "A dog"),
        ("two periods..", "two periods.", "two periods."),
        (" spaces . ", " spaces . ", "spaces ."),
        ("space before .", "space before ", "space before"),
        ("", "", ""),
    ],
)
def test_cleaning(text: str, inference: str, training: str) -> None:
    assert prompts.clean_expression(text) == inference
    assert prompts.clean_expression(text, training=True) == training


@pytest.mark.parametrize("text", ["", " ", "\n\t", ".", " .", "\u3000"])
def test_empty_expressions(text: str) -> None:
    with pytest.raises(InputError, match=r"meta\.json: exp is empty"):
        prompts.check_expression(text, "meta.json: exp")


@pytest.mark.parametrize(
    "text",
    [
        "the [SEG] token",
        "[seg]",
        "an <image> here",
        "an <IMAGE> here",  # lower-casing would turn it into the placeholder
        "<im_start>",
        "<im_end>",
        "<im_patch>",
        "<s> dog",
        "</S>",
        "<unk>",
        "USER: hello",
        "x ASSISTANT: y",
    ],
)
def test_reserved_text(text: str) -> None:
    with pytest.raises(InputError, match="reserves"):
        prompts.check_expression(text)


def test_lone_surrogate() -> None:
    with pytest.raises(InputError, match="Unicode"):
        prompts.check_expression("a \ud800 dog")


@pytest.mark.parametrize("text", ["a || b", "the user: a man", "image of a dog", "a < s > b", "犬", "{}"])
def test_ordinary_text(text: str) -> None:
    assert prompts.check_expression(text) == text


def test_failure_has_the_ids_of_success(tokenizer: GlusTokenizer) -> None:
    good = prompts.window_prompt("a dog", 3, history=[True, True])
    bad = prompts.window_prompt("a dog", 3, history=[False, True])
    assert good != bad
    assert tokenizer.encode_with_images(good) == tokenizer.encode_with_images(bad)


def test_options() -> None:
    """D8 and lower-casing can be switched; the defaults are the released ones."""
    default = prompts.window_prompt("A Dog", 1)
    assert default.endswith("Sure, the segmentation result is ")
    assert "the a dog in" in default
    assert prompts.window_prompt("A Dog", 1, trailing_space=False) == default.rstrip(" ")
    assert "the A Dog in" in prompts.window_prompt("A Dog", 1, lower=False)
    assert "Please segment the a dog" in prompts.window_prompt("A Dog", 1, question=1)
    assert "Please segment the A Dog" in prompts.training_prompt("A Dog", [1], [0], lower=False)


@pytest.mark.parametrize(("context", "rounds"), [(4, 1), (4, 4), (1, 2), (6, 3)])
def test_image_count(context: int, rounds: int) -> None:
    assert prompts.window_prompt("x", rounds, context).count(prompts.IMAGE_BLOCK) == context + rounds
    training = prompts.training_prompt("x", [0] * rounds, [1] * rounds, context)
    assert training.count(prompts.IMAGE_BLOCK) == context + rounds
    assert training.count("[SEG]") == training.count("</s>") == rounds


@pytest.mark.parametrize(("rounds", "history"), [(0, None), (2, [True, True]), (1, [False])])
def test_wrong_history(rounds: int, history: list[bool] | None) -> None:
    with pytest.raises(ValueError, match="history"):
        prompts.window_prompt("x", rounds, history=history)
