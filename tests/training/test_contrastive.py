"""The token bank and the object contrastive loss (reference glus.md 5.4; D19, D20)."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from glus.data.records import Record
from glus.training.contrastive import ObjectContrastiveLoss, ObjectTable, TokenBank, TokenKey, contrastive_losses
from glus.training.objective import ContrastiveConfig, LossRules

OBJECTS = {("v", "0"): (3, 5), ("v", "1"): (5, 3), ("v", "2"): (3,), ("w", "0"): (3, 5), ("w", "1"): ()}


def records() -> list[Record]:
    return [
        Record("mevis", video, exp, "x", ("0",), Path(), tuple(map(str, ids)))
        for (video, exp), ids in OBJECTS.items()
    ]


def contrast(negatives: int = 2, size: int = 64, seed: int = 0, **rules: Any) -> ObjectContrastiveLoss:
    config = ContrastiveConfig(bank_size=size, negatives=negatives)
    return ObjectContrastiveLoss(ObjectTable({"mevis": records}), random.Random(seed), config, LossRules(**rules))


def key(video: str, exp: str, frame: int, dataset: str = "mevis") -> TokenKey:
    return TokenKey(dataset, video, exp, f"{frame:05d}")


def tokens(count: int, seed: int = 0, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).requires_grad_()


BANK = [key("v", "1", 0), key("v", "1", 1), key("v", "0", 1), key("v", "2", 0), key("w", "0", 0), key("w", "1", 0)]


def test_candidates() -> None:
    """Same objects, other expression, same frame: positive. Same expression: neither. Same objects at another
    frame: a negative only under the original's rule (D19). Overlapping objects, other videos: negatives."""
    for released, negatives in ((False, [3, 4, 5]), (True, [1, 3, 4, 5])):
        loss = contrast(same_object_negatives=released)
        loss.bank.append(BANK, tokens(6))
        found = loss.candidates([key("v", "0", 0)])[0]
        assert found.positives == [0]
        assert found.negatives == negatives


def test_expressions_without_objects_have_no_positives() -> None:
    loss = contrast()
    loss.bank.append([key("w", "1", 0), key("w", "9", 0)], tokens(2))
    assert loss.candidates([key("w", "1", 0)])[0].positives == []


def test_value_by_hand() -> None:
    anchors, others = tokens(1).double(), tokens(3, seed=1).double()
    cosines = torch.cosine_similarity(anchors, others).div(0.07).tolist()
    expected = -math.log(math.exp(cosines[0]) / sum(map(math.exp, cosines)))
    ours = contrastive_losses(anchors, others[None], 0.07, fp32=False)
    assert ours.tolist() == pytest.approx([expected])


def test_no_overflow() -> None:
    """A plain exp(1 / 0.001) is infinite; the maximum is subtracted."""
    anchor = tokens(1)
    loss = contrastive_losses(anchor, torch.stack([-anchor, anchor, anchor], dim=1).detach(), 0.001)
    assert loss.tolist() == pytest.approx([2000 + math.log(2)], rel=1e-5)
    loss.sum().backward()
    assert anchor.grad is not None
    assert torch.isfinite(anchor.grad).all()


def test_draws_are_asked_for_in_order_and_choose_the_tokens() -> None:
    loss = contrast(negatives=2)
    bank, current = tokens(6), tokens(1, seed=1)
    loss.bank.append(BANK, bank)
    asked: list[int] = []

    def draw(below: int) -> int:
        asked.append(below)
        return [2, 0, 0][len(asked) - 1]

    result = loss([key("v", "0", 0)], current, draw)
    assert asked == [3, 3, 1]
    assert result.rows == [0]
    expected = contrastive_losses(current, bank[[0, 5, 3]][None], 0.07)
    torch.testing.assert_close(result.losses, expected)


def test_a_batch_meets_its_own_tokens() -> None:
    loss = contrast(negatives=1)
    result = loss([key("v", "0", 0), key("v", "1", 0), key("w", "0", 0)], tokens(3))
    assert result.rows == [0, 1]
    assert loss.bank.keys == [key("v", "0", 0), key("v", "1", 0), key("w", "0", 0)]


def test_gradient_reaches_the_current_tokens_only() -> None:
    loss = contrast(negatives=1)
    first = tokens(3)
    loss([key("v", "0", 0), key("v", "1", 0), key("w", "0", 0)], first)
    second = tokens(1, seed=1)
    result = loss([key("v", "0", 0)], second)
    assert result.mean is not None
    result.mean.backward()
    assert first.grad is None
    assert second.grad is not None
    assert second.grad.abs().sum() > 0
    assert loss.bank.tokens is not None
    assert not loss.bank.tokens.requires_grad


def test_one_valid_token() -> None:
    """D19: the original drops the term of a batch with exactly one valid token."""
    for keep in (True, False):
        loss = contrast(single_contrastive_token=keep)
        loss.bank.append(BANK, tokens(6))
        result = loss([key("v", "0", 0)], tokens(1, seed=1))
        assert result.rows == [0]
        assert (result.mean is not None) == keep


def test_too_few_negatives_or_no_positive() -> None:
    loss = contrast(negatives=4)
    loss.bank.append(BANK, tokens(6))
    assert loss([key("v", "0", 0)], tokens(1)).mean is None
    assert loss([key("v", "2", 0)], tokens(1)).mean is None


def test_first_in_first_out() -> None:
    bank = TokenBank(4)
    values = torch.arange(6.0)[:, None]
    bank.append([key("v", "0", i) for i in range(3)], values[:3])
    bank.append([key("v", "0", i) for i in range(3, 6)], values[3:])
    assert [k.frame for k in bank.keys] == ["00002", "00003", "00004", "00005"]
    assert bank.tokens is not None
    assert bank.tokens[:, 0].tolist() == [2, 3, 4, 5]
    bank.append([key("v", "0", i) for i in range(6)], values)
    assert bank.tokens[:, 0].tolist() == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="1 keys for 2 tokens"):
        bank.append([key("v", "0", 0)], values[:2])


def test_the_bank_keeps_a_copy() -> None:
    bank, values = TokenBank(4), torch.ones(1, 2)
    bank.append([key("v", "0", 0)], values)
    values += 1
    assert bank.tokens is not None
    assert bank.tokens.tolist() == [[1, 1]]


def test_only_known_data_sets_count_and_they_are_read_when_met() -> None:
    """D20: training on other sets needs no MeViS on disk."""
    reads: list[str] = []

    def source() -> Iterable[Record]:
        reads.append("mevis")
        return records()

    loss = ObjectContrastiveLoss(ObjectTable({"mevis": source}), random.Random(0), ContrastiveConfig(8, 1))
    other = [key("v", "0", 0, "revos"), key("v", "1", 0, "revos")]
    assert loss(other, tokens(2)).rows == []
    assert len(loss.bank) == 0
    assert reads == []
    mixed = [other[0], key("v", "0", 0), other[1], key("v", "1", 0), key("w", "0", 0)]
    values = tokens(5)
    assert loss(mixed, values).rows == [1, 3]
    assert reads == ["mevis"]
    torch.testing.assert_close(loss.bank.tokens, values.detach()[[1, 3, 4]])


def test_resume_is_exact() -> None:
    """The state survives `torch.save` and a `weights_only` load, and the draws go on where they stopped."""

    def step(loss: ObjectContrastiveLoss, number: int) -> float:
        keys = [key("v", "0", number), key("v", "1", number), key("w", "0", number)]
        mean = loss(keys, tokens(3, seed=number)).mean
        assert mean is not None
        return mean.item()

    undisturbed = contrast(negatives=1, size=7)
    expected = [step(undisturbed, i) for i in range(8)]
    before = contrast(negatives=1, size=7)
    losses = [step(before, i) for i in range(4)]
    buffer = io.BytesIO()
    torch.save(before.state_dict(), buffer)
    buffer.seek(0)
    after = contrast(negatives=1, size=7, seed=99)
    after.load_state_dict(torch.load(buffer, weights_only=True))
    assert losses + [step(after, i) for i in range(4, 8)] == expected
    assert after.bank.keys == undisturbed.bank.keys
    assert torch.equal(after.bank.tokens, undisturbed.bank.tokens)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a bank of 3 tokens cannot take this state of 7 keys"):
        contrast(negatives=1, size=3).load_state_dict(after.state_dict())


def test_an_empty_bank_can_be_saved() -> None:
    loss = contrast()
    loss.load_state_dict(contrast().state_dict())
    assert len(loss.bank) == 0


def test_bf16() -> None:
    """fp32 arithmetic under bf16 tokens by default; the original stays in bf16."""
    keys = [key("v", "0", 0), key("v", "1", 0), key("w", "0", 0)]
    values = tokens(3, width=256).detach().bfloat16()
    exact = contrast(negatives=1)(keys, values.double()).mean
    ours, released = (contrast(negatives=1, fp32=fp32)(keys, values).mean for fp32 in (True, False))
    assert exact is not None
    assert ours is not None
    assert released is not None
    assert ours.dtype == torch.float32
    assert float(ours) == pytest.approx(float(exact), rel=1e-5)
    assert released.dtype == torch.bfloat16
    assert float(released) == pytest.approx(float(exact), rel=0.05)
