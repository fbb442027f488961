"""Object contrastive loss and its token bank (reference glus.md, section 5.4; defects D19, D20).

A token is the [SEG] embedding of one (expression, frame). It is drawn towards a token of another expression
that means the same objects of the same frame, and away from others, all from a first-in-first-out bank of
detached tokens. One object per process; nothing is shared between ranks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from glus.data.records import Record
from glus.modeling.assemble import upload
from glus.training.objective import ContrastiveConfig, LossRules

Draw = Callable[[int], int]
"""Draws an index below its argument."""


class TokenKey(NamedTuple):
    """Whose token it is."""

    dataset: str
    video: str
    exp_id: str
    frame: str


class ObjectTable:
    """Which objects an expression means; a data set is read only when one of its tokens is met (D20).

    Args:
        sources: data set name -> function giving its training records. Tokens of other data sets are ignored;
            the original knows `mevis` alone.
    """

    def __init__(self, sources: Mapping[str, Callable[[], Iterable[Record]]]) -> None:
        self._sources = dict(sources)
        self._tables: dict[str, dict[tuple[str, str], tuple[str, ...]]] = {}

    def __contains__(self, dataset: str) -> bool:
        return dataset in self._sources

    def objects(self, key: TokenKey) -> tuple[str, ...]:
        """Sorted object ids of the key's expression; empty where the data set does not say."""
        if key.dataset not in self._tables:
            self._tables[key.dataset] = {
                (record.video, record.exp_id): tuple(sorted(record.obj_ids))
                for record in self._sources[key.dataset]()
            }
        return self._tables[key.dataset].get((key.video, key.exp_id), ())


class TokenBank:
    """The newest `size` tokens, oldest first, with their keys.

    Attributes:
        keys: one per token.
        tokens: (len(keys), D), detached; None while empty.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.keys: list[TokenKey] = []
        self.tokens: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def append(self, keys: Sequence[TokenKey], tokens: torch.Tensor) -> None:
        """Add tokens (N, D) and forget the oldest beyond `size`."""
        if len(keys) != len(tokens):
            raise ValueError(f"{len(keys)} keys for {len(tokens)} tokens")
        new = tokens.detach().clone()
        if self.tokens is not None:
            new = torch.cat([self.tokens.to(new), new])
        self.keys = [*self.keys, *keys][-self.size :]
        self.tokens = new[-self.size :]


@dataclass(frozen=True)
class Candidates:
    """Bank positions, oldest 0, that may serve a token."""

    positives: list[int]
    negatives: list[int]


@dataclass(frozen=True)
class ContrastiveResult:
    """The contrastive loss of a micro-batch, unweighted.

    Attributes:
        mean: over the valid tokens; None where the term is dropped.
        rows: the valid tokens, as rows of what was passed in.
        losses: (len(rows),) their losses; None without any.
    """

    mean: torch.Tensor | None
    rows: list[int]
    losses: torch.Tensor | None


class ObjectContrastiveLoss:
    """The loss with its bank and its random draws.

    Args:
        objects: what each expression means.
        generator: source of the draws; its state is part of `state_dict`.
    """

    def __init__(
        self,
        objects: ObjectTable,
        generator: random.Random,
        config: ContrastiveConfig | None = None,
        rules: LossRules | None = None,
    ) -> None:
        self.objects = objects
        self.generator = generator
        self.config = config or ContrastiveConfig()
        self.rules = rules or LossRules()
        self.bank = TokenBank(self.config.bank_size)

    def __call__(
        self, keys: Sequence[TokenKey], tokens: torch.Tensor, draw: Draw | None = None
    ) -> ContrastiveResult:
        """Store the tokens, then compare each with the bank, its own batch included.

        Args:
            keys: one per token, expression-major, then frame.
            tokens: (N, D) with graph; the gradient flows through them alone, not through the bank.
            draw: replaces the generator, e.g. to replay recorded draws. Asked per valid token for
                `config.negatives` negatives and then one positive.
        """
        if len(keys) != len(tokens):
            raise ValueError(f"{len(keys)} keys for {len(tokens)} tokens")
        known = [row for row, key in enumerate(keys) if key.dataset in self.objects]
        if not known:
            return ContrastiveResult(None, [], None)
        self.bank.append([keys[row] for row in known], tokens.index_select(0, upload(known, tokens.device)))
        rows, picks = self._draw(keys, known, draw or self.generator.randrange)
        if not rows or self.bank.tokens is None:
            return ContrastiveResult(None, [], None)
        anchors = tokens.index_select(0, upload(rows, tokens.device))
        others = self.bank.tokens[upload(picks, tokens.device)]
        losses = contrastive_losses(anchors, others, self.config.temperature, self.rules.fp32)
        dropped = len(rows) == 1 and not self.rules.single_contrastive_token
        return ContrastiveResult(None if dropped else losses.mean(), rows, losses)

    def _draw(
        self, keys: Sequence[TokenKey], known: Sequence[int], draw: Draw
    ) -> tuple[list[int], list[list[int]]]:
        """Valid rows, and for each the bank positions [positive, negatives ...]."""
        rows, picks = [], []
        for row, found in zip(known, self.candidates([keys[row] for row in known]), strict=True):
            if not found.positives or len(found.negatives) < self.config.negatives:
                continue
            drawn = [found.negatives[draw(len(found.negatives))] for _ in range(self.config.negatives)]
            rows.append(row)
            picks.append([found.positives[draw(len(found.positives))], *drawn])
        return rows, picks

    def candidates(self, keys: Sequence[TokenKey]) -> list[Candidates]:
        """For each key the bank entries that may serve as positives and as negatives."""
        stored = [(key, self.objects.objects(key)) for key in self.bank.keys]
        return [self._candidates(key, self.objects.objects(key), stored) for key in keys]

    def _candidates(
        self, key: TokenKey, meant: tuple[str, ...], stored: Sequence[tuple[TokenKey, tuple[str, ...]]]
    ) -> Candidates:
        found = Candidates([], [])
        for position, (other, objects) in enumerate(stored):
            if other[:2] != key[:2]:
                found.negatives.append(position)
            elif other.exp_id != key.exp_id:
                same = bool(meant) and objects == meant
                if same and other.frame == key.frame:
                    found.positives.append(position)
                elif not same or self.rules.same_object_negatives:
                    found.negatives.append(position)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Bank and generator, as tensors and plain values (readable with `weights_only=True`)."""
        return {
            "keys": [list(key) for key in self.bank.keys],
            "tokens": None if self.bank.tokens is None else self.bank.tokens.cpu().clone(),
            "generator": self.generator.getstate(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: keys and tokens disagree, or there are more than the bank holds.
        """
        keys, tokens = [TokenKey(*key) for key in state["keys"]], state["tokens"]
        if len(keys) != (0 if tokens is None else len(tokens)) or len(keys) > self.bank.size:
            raise ValueError(f"a bank of {self.bank.size} tokens cannot take this state of {len(keys)} keys")
        version, words, gauss = state["generator"]
        self.generator.setstate((version, tuple(words), gauss))
        self.bank.keys, self.bank.tokens = keys, None if tokens is None else tokens.clone()


def contrastive_losses(
    anchors: torch.Tensor, others: torch.Tensor, temperature: float, fp32: bool = True
) -> torch.Tensor:
    """-log of the positive's share in the soft-max of cosine similarities / temperature.

    Args:
        anchors: (V, D).
        others: (V, 1 + negatives, D), the positive first.

    Returns:
        (V,). The soft-max subtracts its maximum, so no similarity overflows.
    """
    if fp32:
        anchors, others = anchors.float(), others.float()
    similarity = F.cosine_similarity(anchors[:, None], others, dim=-1) / temperature
    return -similarity.log_softmax(dim=-1)[:, 0]
