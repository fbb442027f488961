"""Training conversations to padded ids and labels (reference glus.md 3.4; defect D49).

Labels come from token spans: each conversation is cut where an answer begins and ends, the parts are encoded
one by one, and the joined ids must equal the ids of the whole conversation. That holds because an answer
follows a space and a round follows `</s>`; it is checked for every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glus.errors import InputError
from glus.text.prompts import ASSISTANT_ROLE
from glus.text.tokenizer import EOS_TOKEN, GlusTokenizer

IGNORE_INDEX = -100


@dataclass(frozen=True)
class TextBatch:
    """Right-padded rows, one per conversation.

    Attributes:
        input_ids: [rows, length] int64, padded with `pad_id`; images are one IMAGE_INDEX each.
        labels: [rows, length] int64, IGNORE_INDEX except on answers with their `[SEG]`, `.` and `</s>`.
        attention_mask: [rows, length] bool, False on padding.
        offset: [samples + 1] int64, rows of sample i are offset[i] to offset[i + 1] - 1.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    attention_mask: NDArray[np.bool_]
    offset: NDArray[np.int64]


def label_conversation(conversation: str, tokenizer: GlusTokenizer) -> tuple[list[int], list[int]]:
    """Ids and labels of one closed conversation (image markers already wrapped), equal in length.

    Raises:
        InputError: the rounds cannot be told apart, e.g. because the expression holds `</s>`, `<unk>` or
            a role marker.
    """
    *rounds, rest = conversation.split(EOS_TOKEN)
    if rest or not rounds:
        raise InputError(f"conversation does not end in {EOS_TOKEN}: {conversation[-80:]!r}")
    marker = f"{ASSISTANT_ROLE} "
    ids, labels = [tokenizer.bos_id], [IGNORE_INDEX]
    for number, text in enumerate(rounds):
        if text.count(marker) != 1:
            raise InputError(
                f"round {number} of a conversation has {text.count(marker)} times {marker!r} instead of one; "
                f"the expression must hold no role marker and no {EOS_TOKEN}: {text[-160:]!r}"
            )
        request, answer = text.split(marker)
        request_ids = tokenizer.encode_with_images(request + ASSISTANT_ROLE)[1:]
        answer_ids = tokenizer.encode_with_images(answer + EOS_TOKEN)[1:]
        ids += request_ids + answer_ids
        labels += [IGNORE_INDEX] * len(request_ids) + answer_ids
    if ids != tokenizer.encode_with_images(conversation):
        raise InputError(f"answers cannot be aligned with the tokens of {conversation!r}")
    if tokenizer.pad_id in ids:
        raise InputError(f"a conversation holds the padding token: {conversation!r}")
    return ids, labels


def collate(conversations: Sequence[Sequence[str]], tokenizer: GlusTokenizer) -> TextBatch:
    """Batch the conversations of several samples; each sample may have its own number of them.

    Args:
        conversations: per sample, closed conversations as `training_prompt` builds them.

    Raises:
        InputError: see `label_conversation`; also when there is no conversation at all.
    """
    rows = [label_conversation(text, tokenizer) for sample in conversations for text in sample]
    if not rows:
        raise InputError("a batch needs at least one conversation")
    shape = (len(rows), max(len(ids) for ids, _ in rows))
    input_ids = np.full(shape, tokenizer.pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.bool_)
    for row, (ids, targets) in enumerate(rows):
        input_ids[row, : len(ids)] = ids
        labels[row, : len(ids)] = targets
        attention_mask[row, : len(ids)] = True
    offset = np.cumsum([0, *map(len, conversations)], dtype=np.int64)
    return TextBatch(input_ids, labels, attention_mask, offset)
