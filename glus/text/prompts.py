"""Prompt templates and conversations, word for word as the released weights were trained.

The grammar slips ("Please finished", "the the") are part of the trained distribution (D45). Reference glus.md
gives the strings in 3.1, the inference dialog with its sliding window in 3.3, training conversations in 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence

from glus.errors import InputError
from glus.io import is_unicode
from glus.text.tokenizer import (
    BOS_TOKEN,
    EOS_TOKEN,
    IM_END_TOKEN,
    IM_PATCH_TOKEN,
    IM_START_TOKEN,
    IMAGE_PLACEHOLDER,
    SEG_TOKEN,
    UNK_TOKEN,
)

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
CONTEXT_REQUEST = "\nPlease finished the following tasks on the context frames above.\n"
QUESTIONS = (
    "Can you segment the {expression} in this frame?",
    "Please segment the {expression} in this frame.",
    "What is {expression} in this frame? Please respond with segmentation mask.",
    "What is {expression} in this frame? Please output segmentation mask.",
)
ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)
FORCED_ANSWER = "Sure, the segmentation result is "
SUCCESS_ANSWER = FORCED_ANSWER + "[SEG]."
FAILURE_ANSWER = FORCED_ANSWER + "[SEG] ."
"""What a failed round is re-fed as; it has the same ids as SUCCESS_ANSWER."""
USER_ROLE, ASSISTANT_ROLE = "USER:", "ASSISTANT:"
CONTEXT_FRAMES = 4

IMAGE_BLOCK = f"{IM_START_TOKEN}{IMAGE_PLACEHOLDER}{IM_END_TOKEN}"
_RESERVED = (
    SEG_TOKEN,
    IMAGE_PLACEHOLDER,
    IM_START_TOKEN,
    IM_END_TOKEN,
    IM_PATCH_TOKEN,
    BOS_TOKEN,
    EOS_TOKEN,
    UNK_TOKEN,
)


def clean_expression(text: str, training: bool = False) -> str:
    """Remove one trailing period; in training also the whitespace around what is left (C2)."""
    text = text.removesuffix(".")
    return text.strip() if training else text


def check_expression(text: str, where: str = "expression", also: Sequence[str] = ()) -> str:
    """Return `text` unchanged if a model can be asked for it.

    The original runs into index errors on such text in the middle of a video (D9, D43). Special tokens are
    refused in any case, because expressions are lower-cased afterwards.

    Args:
        where: what to call the text in the message, e.g. the file and field it came from.
        also: further texts that the prompts of a model reserve.

    Raises:
        InputError: empty, only whitespace and periods, not valid Unicode, or holding a special token or a
            role marker.
    """
    if all(letter == "." or letter.isspace() for letter in text):
        raise InputError(f"{where} is empty: {text!r}; write what to segment, e.g. 'the red car'")
    if not is_unicode(text):
        raise InputError(f"{where} is not valid Unicode text: {text!r}")
    lowered = text.lower()
    found = [token for token in (*_RESERVED, *also) if token.lower() in lowered]
    found += [role for role in (USER_ROLE, ASSISTANT_ROLE) if role in text]
    if found:
        raise InputError(f"{where} contains {', '.join(found)}, which the prompt reserves: {text!r}")
    return text


def question_text(expression: str, question: int = 0, lower: bool = True) -> str:
    """Question template number `question` about `expression`, without the image that precedes it."""
    return QUESTIONS[question].format(expression=expression.lower() if lower else expression)


def context_block(context_frames: int = CONTEXT_FRAMES) -> str:
    """The context images and the sentence about them, which open the first message; nothing without images."""
    if context_frames == 0:
        return ""
    return IMAGE_BLOCK * context_frames + CONTEXT_REQUEST


def wrap_images(text: str) -> str:
    """Put the image markers around every bare `<image>`."""
    return text.replace(IMAGE_PLACEHOLDER, IMAGE_BLOCK)


def _conversation(questions: Sequence[str], answers: Sequence[str], context_frames: int) -> str:
    """Rounds in chat form. Answers carry their own end mark, so that the last one can stay open."""
    text = SYSTEM + " "
    for number, (asked, answered) in enumerate(zip(questions, answers, strict=True)):
        opening = context_block(context_frames) if number == 0 else ""
        text += f"{USER_ROLE} {opening}{IMAGE_BLOCK}\n{wrap_images(asked)} {ASSISTANT_ROLE} {answered}"
    return text


def window_prompt(
    expression: str,
    rounds: int,
    context_frames: int = CONTEXT_FRAMES,
    history: Sequence[bool] | None = None,
    question: int = 0,
    trailing_space: bool = True,
    lower: bool = True,
) -> str:
    """The prompt of one inference window; its last round ends in the forced answer (reference glus.md 3.3).

    Holds `context_frames + rounds` images, in order. The id that follows the prompt should be `[SEG]`.

    Args:
        expression: already through `clean_expression`; not checked here.
        rounds: question rounds in the window, from 1.
        history: whether each of the `rounds - 1` earlier rounds succeeded; default all. Failed rounds are
            re-fed in another spelling with the same ids.
        question: number of the question template.
        trailing_space: end in the lone space token, which training never saw before `[SEG]` (D8, kept).
        lower: lower-case the expression, as in training.
    """
    succeeded = [True] * (rounds - 1) if history is None else list(history)
    if rounds < 1 or len(succeeded) != rounds - 1:
        raise ValueError(f"{rounds} rounds need a history of {rounds - 1} entries, got {len(succeeded)}")
    answers = [(SUCCESS_ANSWER if ok else FAILURE_ANSWER) + EOS_TOKEN for ok in succeeded]
    answers.append(FORCED_ANSWER if trailing_space else FORCED_ANSWER.rstrip())
    return _conversation([question_text(expression, question, lower)] * rounds, answers, context_frames)


def training_prompt(
    expression: str,
    questions: Sequence[int],
    answers: Sequence[int],
    context_frames: int = CONTEXT_FRAMES,
    lower: bool = True,
) -> str:
    """One training conversation: a round per entry of `questions` and `answers` (template numbers).

    Args:
        expression: already through `clean_expression(..., training=True)`; not checked here.
    """
    asked = [question_text(expression, number, lower) for number in questions]
    return _conversation(asked, [ANSWERS[number] + EOS_TOKEN for number in answers], context_frames)
