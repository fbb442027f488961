"""What is minimised: weights, rules and the contrastive sizes. Needs no torch.

Defaults of the weights are the released ones (reference glus.md, section 5). Where the original's rule has a
defect the corrected one is the default and the original's is named in the field.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from glus.errors import InputError


@dataclass(frozen=True)
class LossWeights:
    """Factors of the terms in the total; the reported terms include them (5.5)."""

    ce: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    contrastive: float = 0.1

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value < float("inf"):
                raise InputError(f"loss weight {name} must be a finite number from 0, found {value}")


@dataclass(frozen=True)
class LossRules:
    """Switches between the corrected and the original rule. `preset("released")` is the original throughout."""

    overlap: Literal["union", "sum"] = "union"
    """D16: how the masks of an expression's objects join; "sum" gives targets of 2 where they overlap."""
    single_contrastive_token: bool = True
    """D19: keep the contrastive term of a batch with exactly one valid token; the original drops it."""
    same_object_negatives: bool = False
    """D19: count bank entries of the same objects (at other frames) as negatives, as the original does."""
    fp32: bool = True
    """1.11: cross entropy and contrastive loss in fp32; the original computes both in the model's dtype."""

    def __post_init__(self) -> None:
        if self.overlap not in ("union", "sum"):
            raise InputError(f"overlap must be union or sum, found {self.overlap!r}")

    @staticmethod
    def preset(name: str) -> LossRules:
        """`corrected` (the default) or `released`."""
        if name == "corrected":
            return LossRules()
        if name == "released":
            return LossRules("sum", single_contrastive_token=False, same_object_negatives=True, fp32=False)
        raise InputError(f"unknown compat preset {name!r}; choose corrected or released")


@dataclass(frozen=True)
class ContrastiveConfig:
    """Sizes of the object contrastive loss (5.4)."""

    bank_size: int = 512
    negatives: int = 128
    """Negatives drawn per token; a token with fewer to draw from has no loss."""
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.negatives < 1 or self.bank_size < self.negatives:
            raise InputError(
                f"contrastive sizes need 1 <= negatives <= bank_size, "
                f"found negatives {self.negatives}, bank_size {self.bank_size}"
            )
        if not self.temperature > 0:
            raise InputError(f"contrastive temperature must be above 0, found {self.temperature}")


@dataclass(frozen=True)
class Objective:
    """Everything that decides the loss of a batch."""

    weights: LossWeights = field(default_factory=LossWeights)
    rules: LossRules = field(default_factory=LossRules)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
