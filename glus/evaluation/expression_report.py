"""From the scores of expressions to results: faults, totals and files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from glus.errors import InputError
from glus.evaluation.expressions import ExpressionScores

logger = logging.getLogger(__name__)

OnFailure = Literal["error", "zero", "drop"]
SHORT = {"J": "region", "F": "boundary", "A": "accuracy", "R": "robustness"}


class Scored:
    """All expressions of an evaluation after the policy for failures.

    Attributes:
        kept: the expressions that count, in file order.
        failed: names of those with faults; counted as 0 (`zeros`) or left out.
        missing_frames, missing_expressions: predictions taken as empty, and how many expressions have any.
    """

    def __init__(self, scores: Sequence[ExpressionScores], on_failure: OnFailure, absent_is_zero: bool) -> None:
        """Apply the policy.

        Args:
            absent_is_zero: with `drop`, an expression counts as 0 when nothing at all is there for its video
                (what the original eval_mevis does).

        Raises:
            InputError: there are faults and the policy is `error`, or nothing is left; lists every fault.
        """
        faulty = [s for s in scores if s.faults]
        faults = list(dict.fromkeys(fault for s in faulty for fault in s.faults))
        if faults and on_failure == "error":
            raise InputError(
                f"nothing was scored, faults: {len(faults)} (in {len(faulty)} of {len(scores)} expressions)\n"
                + "\n".join(f"  {fault}" for fault in faults)
                + "\nPut them right, or choose: --allow_missing (missing masks are empty), --allow_extra, "
                "--on_failure zero|drop"
            )
        for fault in faults:
            logger.warning("%s", fault)
        self.zeros = {id(s) for s in faulty if on_failure == "zero" or (absent_is_zero and s.absent)}
        self.kept = [s for s in scores if not s.faults or id(s) in self.zeros]
        self.failed = [s.expression.name for s in faulty]
        self.missing_frames = sum(s.missing for s in self.kept)
        self.missing_expressions = sum(s.missing > 0 for s in self.kept)
        if not self.kept:
            raise InputError("every expression failed; there is nothing to average")
        if faulty:
            logger.warning(
                "%d of %d expressions failed: %d count as 0, %d are left out",
                len(faulty),
                len(scores),
                len(self.zeros),
                len(scores) - len(self.kept),
            )
        if self.missing_frames:
            logger.warning(
                "%d missing masks of %d expressions were scored as empty",
                self.missing_frames,
                self.missing_expressions,
            )

    def mean(self, scores: ExpressionScores, metric: str) -> float:
        """Mean over the frames of one expression."""
        return 0.0 if id(scores) in self.zeros else float(np.mean(getattr(scores, SHORT[metric])))

    def total(self, metric: str, group: int | None = None) -> float:
        """Mean over the expressions (of one ReVOS group)."""
        values = [self.mean(s, metric) for s in self.kept if group is None or s.expression.group == group]
        return float(np.mean(values)) if values else float("nan")


def result_dict(protocol: str, scored: Scored, metrics: Sequence[str], per_frame: bool) -> dict[str, Any]:
    """The common JSON: totals and per-expression values as fractions 0..1, unrounded."""
    expressions = []
    for s in scored.kept:
        values = {metric: scored.mean(s, metric) for metric in metrics}
        one: dict[str, Any] = {
            "video": s.expression.video,
            "exp_id": s.expression.exp_id,
            **values,
            "J&F": (values["J"] + values["F"]) / 2,
            "missing_frames": s.missing,
        }
        if per_frame and not s.faults:
            one["frames"] = list(s.frames)
            one["per_frame"] = {metric: getattr(s, SHORT[metric]) for metric in metrics}
        expressions.append(one)
    region, boundary = scored.total("J"), scored.total("F")
    return {
        "protocol": protocol,
        "J": region,
        "F": boundary,
        "J&F": (region + boundary) / 2,
        "expressions_scored": len(scored.kept),
        "frames_scored": sum(len(s.frames) for s in scored.kept),
        "missing_frames": scored.missing_frames,
        "missing_expressions": scored.missing_expressions,
        "failed": scored.failed,
        "failed_count_as_zero": len(scored.zeros),
        "expressions": expressions,
    }
