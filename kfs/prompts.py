"""The selector's prompt, word for word as in the original, grammar slips included (reference kfs.md, 4.1).

A reference video and one target frame of it go in, and the answer holds one `[SCORE]`.
"""

from __future__ import annotations

from glus.text import prompts
from glus.text.tokenizer import EOS_TOKEN, IMAGE_PLACEHOLDER, GlusTokenizer

SCORE_TOKEN = "[SCORE]"
IMAGES = f"Reference Video: {{video}} \nTarget Image: {IMAGE_PLACEHOLDER} \n"
ENOUGH = "provide enough information for localizing and segmenting the {expression} in the Reference Video"
QUESTIONS = (
    f"{IMAGES}Does the Target Image {ENOUGH}? Please respond with a confidence score.",
    f"{IMAGES}Does the Target Image {ENOUGH}? Please output confidence score.",
)
LONG_QUESTIONS = (f"{IMAGES}Please decide whether the Target Image {ENOUGH}.",)
"""For an expression that is a question itself."""
ANSWERS = (
    f"It is {SCORE_TOKEN}.",
    f"Sure, {SCORE_TOKEN}.",
    f"Sure, it is {SCORE_TOKEN}.",
    f"Sure, the prediction result is {SCORE_TOKEN}.",
)


def clean_expression(text: str, training: bool = False) -> str:
    """The expression as the prompt takes it; its full stop stays.

    Scoring lower-cases it and joins words by single blanks, training only strips it, as in the original.
    """
    return text.strip() if training else " ".join(text.lower().split())


def check_expression(text: str, where: str = "expression") -> str:
    """Return `text` if a selector can be asked for it, else raise `InputError`."""
    return prompts.check_expression(text, where, also=(SCORE_TOKEN, "<video>"))


def questions_for(expression: str) -> tuple[str, ...]:
    """The templates that fit the expression."""
    return LONG_QUESTIONS if expression.endswith("?") else QUESTIONS


def conversation(expression: str, references: int, question: int = 0, answer: int = 0) -> str:
    """One closed conversation about `references` frames of a video and a target frame.

    Args:
        expression: already through `clean_expression`; not checked here.
        question: template number in `questions_for`; scoring asks 0.
        answer: template number in `ANSWERS`; scoring takes 0.
    """
    video = ", ".join(f"({number}){IMAGE_PLACEHOLDER}" for number in range(references))
    asked = questions_for(expression)[question].format(video=video, expression=expression)
    roles = f"{prompts.USER_ROLE} {asked} {prompts.ASSISTANT_ROLE} {ANSWERS[answer]}"
    return f"{prompts.SYSTEM} {roles}{EOS_TOKEN}"


def make_tokenizer(model_bytes: bytes, added_tokens: dict[str, int], legacy: bool) -> GlusTokenizer:
    """The selector's tokenizer; `legacy` is what the checkpoint's `tokenizer_config.json` says.

    The switch decides the token after `[SCORE]`, so the cross entropy but never a score.
    """
    return GlusTokenizer(model_bytes, added_tokens, legacy=legacy, required=(SCORE_TOKEN,))
