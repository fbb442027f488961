"""Text ids + image tokens -> LLM input. The one place that splices, and that knows where [SEG] is read.

Rules: reference glus.md, sections 1.4 and 1.5. Each image placeholder becomes `tokens_per_image` positions;
a [SEG] is read at the expanded position *before* it (the state that predicts it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glus.text.labels import IGNORE_INDEX
from glus.text.tokenizer import IMAGE_INDEX


@dataclass(frozen=True)
class Layout:
    """Where everything goes, computed on the host from the ids alone (no device synchronisation).

    Attributes:
        lengths: expanded length of each row.
        text_rows, text_columns, text_ids: (N,) row, expanded column and id of every text token.
        image_rows, image_columns: (M,) row and first expanded column of every image, in feature order.
        seg_rows, seg_columns: (K,) row and column where each [SEG] is read, row-major.
        seg_counts: number of [SEG] per row.
    """

    lengths: list[int]
    text_rows: list[int]
    text_columns: list[int]
    text_ids: list[int]
    image_rows: list[int]
    image_columns: list[int]
    seg_rows: list[int]
    seg_columns: list[int]
    seg_counts: list[int]


@dataclass(frozen=True)
class Assembled:
    """LLM input of a batch, right-padded.

    Attributes:
        embeddings: (B, L, H); zero at padding.
        attention_mask: (B, L) bool, True on real positions.
        labels: (B, L) int64 with `IGNORE_INDEX` on images and padding, or None.
        layout: see `Layout`.
    """

    embeddings: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor | None
    layout: Layout


def upload(indices: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Integers from the host as a tensor on the device, without waiting for the device's queue."""
    return torch.tensor(indices).to(device, non_blocking=True)


def plan_layout(rows: Sequence[Sequence[int]], tokens_per_image: int, seg_id: int) -> Layout:
    """Lay out un-padded id rows (with `IMAGE_INDEX` for images)."""
    plan = Layout([], [], [], [], [], [], [], [], [])
    for row, ids in enumerate(rows):
        column = segs = 0
        for index, token in enumerate(ids):
            if token == IMAGE_INDEX:
                plan.image_rows.append(row)
                plan.image_columns.append(column)
                column += tokens_per_image
                continue
            if token == seg_id and index > 0:
                plan.seg_rows.append(row)
                plan.seg_columns.append(column - 1)
                segs += 1
            plan.text_rows.append(row)
            plan.text_columns.append(column)
            plan.text_ids.append(token)
            column += 1
        plan.lengths.append(column)
        plan.seg_counts.append(segs)
    return plan


def assemble(
    rows: Sequence[Sequence[int]],
    image_tokens: torch.Tensor,
    embedding: torch.nn.Embedding,
    seg_id: int,
    labels: Sequence[Sequence[int]] | None = None,
    max_positions: int | None = None,
) -> Assembled:
    """Splice image tokens into the embedded text.

    Args:
        rows: un-padded token ids per row, `IMAGE_INDEX` where an image goes.
        image_tokens: (images, tokens_per_image, H), consumed in order across the batch.
        labels: per row, as long as the row; the placeholder's own label is ignored.
        max_positions: limit of the expanded length (the LLM's position range, D25).

    Raises:
        ValueError: number of placeholders and images differ, labels do not fit, or a row is too long.
    """
    images, per_image, width = image_tokens.shape
    plan = plan_layout(rows, per_image, seg_id)
    if len(plan.image_rows) != images:
        raise ValueError(f"{len(plan.image_rows)} image placeholders but {images} images")
    longest = max(plan.lengths)
    if max_positions is not None and longest > max_positions:
        raise ValueError(f"the prompt takes {longest} positions, the model has {max_positions}")
    device = image_tokens.device
    embeddings = image_tokens.new_zeros(len(rows), longest, width)
    text_rows, text_columns = upload(plan.text_rows, device), upload(plan.text_columns, device)
    text = embedding(upload(plan.text_ids, device)).to(image_tokens.dtype)
    embeddings = embeddings.index_put((text_rows, text_columns), text)
    if images:
        image_rows = upload(plan.image_rows, device)[:, None]
        columns = upload(plan.image_columns, device)[:, None] + torch.arange(per_image, device=device)
        embeddings = embeddings.index_put((image_rows, columns), image_tokens)
    lengths = upload(plan.lengths, device)
    mask = torch.arange(longest, device=device)[None] < lengths[:, None]
    return Assembled(embeddings, mask, _place_labels(rows, labels, plan, longest, device), plan)


def _place_labels(
    rows: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]] | None,
    plan: Layout,
    longest: int,
    device: torch.device,
) -> torch.Tensor | None:
    if labels is None:
        return None
    if [len(r) for r in rows] != [len(r) for r in labels]:
        raise ValueError("labels must be as long as their rows")
    text = [
        label
        for ids, row in zip(rows, labels, strict=True)
        for i, label in zip(ids, row, strict=True)
        if i != IMAGE_INDEX
    ]
    placed = torch.full((len(rows), longest), IGNORE_INDEX, dtype=torch.int64)
    placed[plan.text_rows, plan.text_columns] = torch.tensor(text, dtype=torch.int64)
    return placed.to(device, non_blocking=True)
