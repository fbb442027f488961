"""What is particular to ReVOS: groups of expressions, rounding, encodings of A and R (evaluation.md 1.4, 3.4)."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from glus.errors import InputError
from glus.evaluation.expression_report import Scored
from glus.evaluation.expressions import ExpressionScores
from glus.evaluation.output import table

logger = logging.getLogger(__name__)

Rounding = Literal["per-expression", "none"]
Results = dict[str, dict[str, float | None]]

GROUPS = {"referring": 0, "reason": 1}  # type_id; 2 (no target) is listed and belongs to no group
METRICS = ("J", "F", "A", "R")
CSV_COLUMNS = ("video_name", "exp_id", "exp", "videxp", "J", "F", "JF", "A", "R", "type_id")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name the variants of A, R and rounding."""
    parser.add_argument(
        "--robustness",
        choices=("binary", "as-published", "as-read"),
        default="binary",
        help="pixels in A and R: masks as 0/1 (default); --pixel_value for the object, with the uint8 arithmetic "
        "of the published tools; or the same with the gray values of the files",
    )
    parser.add_argument(
        "--pixel_value",
        type=int,
        default=255,
        metavar="V",
        help="gray value for --robustness as-published (default: %(default)s)",
    )
    parser.add_argument(
        "--rounding",
        choices=("per-expression", "none"),
        default="per-expression",
        help="table and original-style JSON: percent of each expression rounded to 2 decimals before averaging "
        "(default, as published), or not; --json is never rounded",
    )


def _percent(scored: Scored, scores: ExpressionScores, metric: str, rounding: Rounding) -> float:
    value = 100 * scored.mean(scores, metric)
    return round(value, 2) if rounding == "per-expression" else value


def group_results(scored: Scored, rounding: Rounding) -> Results:
    """`{"referring" | "reason" | "overall": {"J", "F", "A", "R", "JF"}}` in percent.

    `overall` is the unweighted mean of the groups. A group without expressions has None everywhere and is left
    out of `overall`, with a warning (the original gives NaN).

    Raises:
        InputError: both groups are empty.
    """
    results: Results = {}
    for name, type_id in GROUPS.items():
        members = [s for s in scored.kept if s.expression.group == type_id]
        if not members:
            logger.warning("no expressions of group %s (type_id %d); overall is the other group", name, type_id)
            results[name] = dict.fromkeys((*METRICS, "JF"))
            continue
        means = {m: float(np.mean([_percent(scored, s, m, rounding) for s in members])) for m in METRICS}
        results[name] = {**means, "JF": (means["J"] + means["F"]) / 2}
    present = [group for group in results.values() if group["J"] is not None]
    if not present:
        raise InputError("no expression has type_id 0 or 1; there is nothing to average")
    results["overall"] = {m: float(np.mean([group[m] for group in present])) for m in (*METRICS, "JF")}
    return results


def csv_rows(scored: Scored) -> list[dict[str, Any]]:
    """Rows of the original CSV: percent with 2 decimals; JF is rounded from unrounded J and F."""
    rows = []
    for s in scored.kept:
        e = s.expression
        values = {m: _percent(scored, s, m, "per-expression") for m in METRICS}
        both = (_percent(scored, s, "J", "none") + _percent(scored, s, "F", "none")) / 2
        rows.append(
            {
                "video_name": e.video,
                "exp_id": e.exp_id,
                "exp": e.text,
                "videxp": f"{e.video}_{e.exp_id}",
                **values,
                "JF": round(both, 2),
                "type_id": e.group,
            }
        )
    return rows


def json_fields(unrounded: Results, args: argparse.Namespace) -> dict[str, Any]:
    """What `--json` has beyond the common fields: J, F, A, R of `overall` and of the groups, as fractions."""
    groups = {
        name: {m: None if v is None else v / 100 for m, v in values.items()} for name, values in unrounded.items()
    }
    overall: Mapping[str, float | None] = groups["overall"]
    return {
        **{m: overall[m] for m in METRICS},
        "J&F": overall["JF"],
        "groups": groups,
        "robustness": args.robustness,
        "pixel_value": args.pixel_value if args.robustness == "as-published" else None,
    }


def text(results: Results, args: argparse.Namespace) -> str:
    """The table on screen, with the names of the variants."""
    columns = ("J", "F", "JF", "A", "R")
    rows = [
        (name, [None if (v := group[c]) is None else v / 100 for c in columns]) for name, group in results.items()
    ]
    variant = args.robustness + (f" ({args.pixel_value})" if args.robustness == "as-published" else "")
    return table(rows, columns) + f"\nA and R: {variant}; rounding: {args.rounding}"
