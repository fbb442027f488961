"""Cross entropy on [SEG], mask losses, targets, rules (reference glus.md 5.1 to 5.3; D16)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_imports import HEAVY, loaded_by

from glus.config import from_dict
from glus.errors import InputError
from glus.masks import merge_instances
from glus.training.losses import (
    mask_bce,
    mask_dice,
    mean_of_pairs,
    seg_cross_entropy,
    total_loss,
)
from glus.training.objective import ContrastiveConfig, LossRules, LossWeights, Objective


def masks(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(shape, generator=draws), (torch.rand(shape, generator=draws) < 0.4).float()


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    expected = sum(math.log(sum(math.exp(v) for v in row)) - row[1] for row in logits.tolist()) / 2
    assert float(seg_cross_entropy(logits, 1)) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_in_bf16_is_computed_in_fp32() -> None:
    """Over a vocabulary of 32,000, a bf16 soft-max is off by more than the rounding of its input."""
    logits = torch.randn(12, 32004, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = float(seg_cross_entropy(logits.double(), 5, fp32=False))
    assert float(seg_cross_entropy(logits, 5)) == pytest.approx(exact, rel=1e-5)
    released = seg_cross_entropy(logits, 5, fp32=False)
    assert released.dtype == torch.bfloat16
    assert float(released) == pytest.approx(exact, rel=0.02)
    assert abs(float(released) - exact) > 1e-4


def test_bce_by_hand() -> None:
    logits, targets = masks(3, 4, 5)
    share = logits.double().sigmoid()
    expected = -(targets * share.log() + (1 - targets) * (1 - share).log()).mean(dim=(1, 2))
    torch.testing.assert_close(mask_bce(logits, targets).double(), expected, rtol=1e-5, atol=0)


def test_dice_is_the_simplified_form() -> None:
    """5.3: the scale of 1000 is an epsilon of 1e-3."""
    logits, targets = masks(3, 4, 5)
    share = logits.double().sigmoid()
    common, size = (share * targets).sum(dim=(1, 2)), share.sum(dim=(1, 2)) + targets.sum(dim=(1, 2))
    expected = 1 - (2 * common + 1e-3) / (size + 1e-3)
    torch.testing.assert_close(mask_dice(logits, targets).double(), expected, rtol=1e-5, atol=0)


def test_empty_target() -> None:
    empty = torch.zeros(2, 8, 8)
    logits = torch.stack([torch.full((8, 8), 2.0), torch.full((8, 8), -40.0)]).requires_grad_()
    dice, bce = mask_dice(logits, empty), mask_bce(logits, empty)
    assert dice.tolist() == pytest.approx([1, 0], abs=1e-4)
    assert bce[1].item() == pytest.approx(0, abs=1e-6)
    (dice.sum() + bce.sum()).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[0] > 0).all()


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]], requires_grad=True)
    targets = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    total = mean_of_pairs([mask_bce(logits, targets)]) + mean_of_pairs([mask_dice(logits, targets)])
    total.backward()
    assert torch.isfinite(total)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_mask_losses_of_bf16_logits_are_fp32() -> None:
    """1.11: sums over a frame's pixels would not survive in bf16."""
    logits, targets = masks(2, 300, 300)
    low = logits.bfloat16()
    for loss in (mask_bce, mask_dice):
        ours = loss(low, targets)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, loss(low.double(), targets), rtol=1e-5, atol=0)


def test_pairs_weigh_alike_whatever_their_grouping() -> None:
    pairs = torch.arange(6.0)
    assert float(mean_of_pairs([pairs[:1], pairs[1:]])) == pytest.approx(2.5)


def test_overlapping_objects() -> None:
    """D16: the union is the default; the original's sum makes targets of 2 and negative BCE."""
    objects = np.zeros((2, 1, 4, 4), dtype=bool)
    objects[0, 0, :3], objects[1, 0, 1:] = True, True
    union, total = merge_instances(objects), merge_instances(objects, "sum")
    assert union.dtype == total.dtype == np.uint8
    assert union.shape == total.shape == (1, 4, 4)
    assert set(union.ravel()) == {1}
    assert total[0, :, 0].tolist() == [1, 2, 2, 1]
    sure = torch.full((1, 4, 4), 9.0)
    assert float(mask_bce(sure, torch.from_numpy(union))) > 0
    assert float(mask_bce(sure, torch.from_numpy(total))) < 0
    assert merge_instances(objects[:0]).tolist() == np.zeros((1, 4, 4)).tolist()


def test_total() -> None:
    one = torch.tensor(1.0)
    losses = total_loss(one, one, one, one, LossWeights())
    assert [float(v) for v in losses.detached().values()] == pytest.approx([3.6, 1, 2, 0.5, 2.5, 0.1])
    without = total_loss(one, one, one, None, LossWeights(ce=0, bce=1, dice=3))
    assert float(without.total) == 4
    assert "contrastive_loss" not in without.detached()


def test_presets() -> None:
    assert LossRules() == LossRules.preset("corrected") == LossRules("union", True, False, True)
    assert LossRules.preset("released") == LossRules("sum", False, True, False)
    with pytest.raises(InputError, match="unknown compat preset 'original'"):
        LossRules.preset("original")


def test_objective_from_a_config_file() -> None:
    objective = from_dict(Objective, {"weights": {"ce": 2}, "rules": {"overlap": "sum"}}, "train.yaml")
    assert objective == Objective(LossWeights(ce=2.0), LossRules(overlap="sum"))
    for data, message in (
        ({"weights": {"ce": -1.0}}, "loss weight ce"),
        ({"weights": {"cee": 1.0}}, "unknown key 'cee'"),
        ({"rules": {"overlap": "or"}}, "overlap"),
        ({"contrastive": {"negatives": 600}}, "negatives 600, bank_size 512"),
        ({"contrastive": {"temperature": 0.0}}, "temperature"),
    ):
        with pytest.raises(InputError, match=message):
            from_dict(Objective, data, "train.yaml")
    with pytest.raises(InputError, match="overlap must be"):
        LossRules(overlap="or")  # type: ignore[arg-type]
    assert ContrastiveConfig() == ContrastiveConfig(512, 128, 0.07)


def test_the_objective_needs_no_torch() -> None:
    assert not loaded_by("glus.training.objective") & HEAVY
