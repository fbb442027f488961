"""What the conversations of a sample begin with alike passes the language model once (reference kfs.md 9.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glus.modeling.assemble import Assembled, assemble, upload
from glus.modeling.multimodal import MultimodalModel
from glus.text.tokenizer import IMAGE_INDEX

Rows = Sequence[Sequence[int]]


def common_length(rows: Rows, limit: int) -> int:
    """How many tokens all rows begin with alike, `limit` at most."""
    return next((i for i in range(limit) if any(row[i] != rows[0][i] for row in rows)), limit)


def can_share(model: MultimodalModel) -> bool:
    """False where states are computed again for the gradients, which keeps no keys and values to share."""
    return not model.language.decoder.is_activation_checkpointing


def states_behind(
    model: MultimodalModel,
    rows: Sequence[Rows],
    images: Sequence[torch.Tensor],
    cut: int,
    mark_id: int,
    labels: Sequence[Rows] | None = None,
) -> tuple[torch.Tensor, Assembled]:
    """States of all rows behind their first `cut` tokens, which are the same in all rows of all samples.

    No attention mask is passed: padding lies to the right, where causal attention never looks, and without a mask
    the fused causal kernel applies.

    Args:
        rows: of each sample, un-padded.
        images: of each sample the tokens of the images that each of its rows shows, (n, tokens_per_image, H).
        mark_id: the token whose position the layout is to tell, such as [SEG].
        labels: as rows.

    Returns:
        (all rows, L, H) and what was spliced, positions counted from the cut on.

    Raises:
        ValueError: see `glus.modeling.assemble.assemble`.
    """
    language, limit = model.language, model.config.language.max_positions
    before = list(rows[0][0][:cut])
    seen = before.count(IMAGE_INDEX)
    tails = [row[cut:] for sample in rows for row in sample]
    wanted = None if labels is None else [row[cut:] for sample in labels for row in sample]
    shown = [tokens[seen:].repeat(len(sample), 1, 1) for tokens, sample in zip(images, rows, strict=True)]
    rest = assemble(tails, torch.cat(shown), language.embedding, mark_id, wanted, limit)
    if not cut:
        return language(rest.embeddings), rest
    firsts = torch.cat([tokens[:seen] for tokens in images])
    prefix = assemble([before] * len(rows), firsts, language.embedding, mark_id, None, limit).embeddings
    owners = [number for number, sample in enumerate(rows) for _ in sample]
    _, shared = language.begin(prefix)
    return language.read(rest.embeddings, shared, upload(owners, prefix.device)), rest
