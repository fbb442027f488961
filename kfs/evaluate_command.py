"""`python -m kfs evaluate`: scores against true IoUs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kfs.evaluation import Comparison, compare
from kfs.key_frames import read_scores

LINES = {
    "chosen": "frame with the highest score",
    "first": "first frame",
    "random": "random frame (expectation)",
    "oracle": "best frame (oracle)",
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m kfs evaluate",
        description="Compare scores with the IoUs that GLUS reached: Spearman's rank correlation per video and "
        "expression, and the mean IoU at the chosen frame against the first, a random and the best one.",
    )
    p.add_argument("scores", type=Path, help="folder of <video>/<expression>/<frame>.json")
    p.add_argument("ious", type=Path, help="folder of <video>/<expression>.json, as python -m kfs annotate writes")
    p.add_argument("--json", action="store_true", help="as JSON")
    return p


def text(found: Comparison) -> str:
    """The comparison for people."""
    rank = "undefined" if found.rank_correlation is None else f"{found.rank_correlation:.3f}"
    lines = [f"{found.expressions} expressions", f"rank correlation {rank} (over {found.ranked} expressions)"]
    lines += [f"mean IoU at the {name:<29} {100 * getattr(found, key):5.1f}" for key, name in LINES.items()]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    found = compare(read_scores(args.scores), args.ious)
    sys.stdout.write(json.dumps(found.to_dict(), indent=2) + "\n" if args.json else text(found))
    return 0
