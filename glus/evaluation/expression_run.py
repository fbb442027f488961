"""What all evaluators of expressions have in common: options, scoring with a policy for faults, outputs."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glus.errors import InputError
from glus.evaluation.expression_files import Predictions
from glus.evaluation.expression_report import OnFailure, Scored, result_dict
from glus.evaluation.expressions import Expression, VideoJob, score_video
from glus.evaluation.frame_ious import ABSENT, check_policy, save_frame_ious
from glus.evaluation.output import check_places, csv_text, save_json, save_text, table
from glus.evaluation.parallel import map_items

logger = logging.getLogger(__name__)

PRED_HELP = "folder <video>/<exp_id>/<frame>.png, or one JSON of run-length codes"
# What each original tool did with an expression whose files are at fault (`--on_failure original`).
_ORIGINAL_POLICY: dict[str, OnFailure] = {
    "mevis": "drop",
    "davis": "drop",
    "revos": "zero",
    "reason_vos": "drop",
    "refytvos": "drop",
}
_ABSENT_IS_ZERO = ("mevis", "davis")


def make_parser(description: str, prog: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all expression evaluators share."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog="Exit status 2: the input is at fault, and every fault is listed.",
    )
    add = parser.add_argument_group("options of every data set").add_argument
    add("--json", type=Path, metavar="FILE", help="write totals and per-expression values as fractions, unrounded")
    add("--csv", type=Path, metavar="FILE", help="write per-expression values as CSV")
    add("--per_frame", action="store_true", help="put the values of every frame into the JSON too")
    add("--iou_path", type=Path, metavar="DIR", help="write per-frame J to DIR/<video>/<exp_id>.json")
    add(
        "--absent",
        choices=ABSENT,
        default="one",
        help="what --iou_path says of frames with neither a true nor a predicted pixel: 1 (default), 0, or null",
    )
    add("--workers", type=int, metavar="N", help="processes (default: one per CPU)")
    add("--allow_missing", action="store_true", help="score missing masks as empty ones and say how many")
    add("--allow_extra", action="store_true", help="ignore masks of frames that are not scored")
    add(
        "--on_failure",
        choices=("error", "zero", "drop", "original"),
        default="error",
        help="expressions with faulty files: stop (default), count as 0, leave out, or as the original tool",
    )
    add(
        "--read_png",
        choices=("values", "opencv"),
        default="values",
        help="foreground: stored value not zero (default), or not black in OpenCV's gray conversion (original)",
    )
    return parser


def warn_surplus(predictions: Predictions, args: argparse.Namespace) -> None:
    """Tell of predictions that the set does not ask for: those of another set, or of more than is scored."""
    surplus = () if args.allow_extra else predictions.surplus()
    if surplus:
        logger.warning(
            "%d predicted videos or expressions are not scored; the first: %s", len(surplus), surplus[0]
        )


def score(protocol: str, jobs: Sequence[VideoJob], args: argparse.Namespace, *outputs: Path) -> Scored:
    """Score all jobs and apply the policy for faults; `outputs` will be written besides the common files."""
    check_places(args.json, args.csv, *outputs)
    if args.iou_path:
        check_policy(args.iou_path, args.absent)
    elif args.absent != "one":
        raise InputError("--absent says what --iou_path writes; give a folder to it")
    start = time.monotonic()
    results = map_items(score_video, jobs, args.workers, protocol)
    policy: OnFailure = _ORIGINAL_POLICY[protocol] if args.on_failure == "original" else args.on_failure
    absent_is_zero = args.on_failure == "original" and protocol in _ABSENT_IS_ZERO
    scored = Scored([one for result in results for one in result], policy, absent_is_zero)
    logger.info("scored %d expressions in %.1f s", len(scored.kept), time.monotonic() - start)
    return scored


def save(protocol: str, scored: Scored, args: argparse.Namespace, extra: dict[str, Any] | None = None) -> None:
    """Write the outputs common to all protocols; `extra` goes into the JSON."""
    metrics = ("J", "F", "A", "R") if protocol == "revos" else ("J", "F")
    if args.json:
        result = result_dict(protocol, scored, metrics, args.per_frame)
        save_json(args.json, {**result, "read_png": args.read_png, "on_failure": args.on_failure, **(extra or {})})
    if args.csv:
        rows = result_dict(protocol, scored, metrics, per_frame=False)["expressions"]
        save_text(args.csv, csv_text(["video", "exp_id", *metrics, "J&F", "missing_frames"], rows))
    if args.iou_path:
        save_frame_ious(args.iou_path, protocol, scored, args.absent, _predictions(args))


def _predictions(args: argparse.Namespace) -> Path:
    """The masks that were scored, whatever the original tool calls them."""
    names = ("mevis_pred_path", "visa_pred_path", "pred_path")
    return next(Path(getattr(args, name)) for name in names if hasattr(args, name))


def original_scores(scored: Scored, key: Callable[[Expression], str]) -> dict[str, list[float]]:
    """`{key: [J, F]}`, the result file of the original eval_mevis and eval_reason_vos."""
    values = {key(s.expression): [scored.mean(s, "J"), scored.mean(s, "F")] for s in scored.kept}
    if len(values) < len(scored.kept):
        raise InputError("video and expression ids joined by _ are ambiguous; use --json and no --save_name")
    return values


def print_totals(scored: Scored) -> None:
    region, boundary = scored.total("J"), scored.total("F")
    name = f"{len(scored.kept)} expressions"
    sys.stdout.write(table([(name, [region, boundary, (region + boundary) / 2])], ["J", "F", "J&F"]) + "\n")
