"""A Markdown table of J&F by kind of expression, from results on a synthetic set.

    python scripts/table_by_kind.py --mevis_exp_path SET/meta_expressions.json glus-tiny=glus.json blind=blind.json

Each result is what an evaluator wrote by --json. Motion is shown twice: all of it, and what no single frame gives
away (without places at the end of the clip).
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glus.errors import InputError
from glus.io import expect, field, read_json

SEEN_IN_ONE_FRAME = ("ends_", "nearest_end")
"""Claims that count as motion but that the last frame answers alone."""
COLUMNS: dict[str, Callable[[str, str], bool]] = {
    "all": lambda kind, claim: True,
    "static": lambda kind, claim: kind == "static",
    "relation": lambda kind, claim: kind == "relation",
    "motion": lambda kind, claim: kind == "motion",
    "motion, several frames needed": lambda kind, claim: (
        kind == "motion" and not claim.startswith(SEEN_IN_ONE_FRAME)
    ),
}


def kinds(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(video, exp_id) -> (kind, claim) of a synthetic set's expressions."""
    videos = field(expect(read_json(path), dict, path, "file"), "videos", dict, path, "file")
    out = {}
    for video, entry in videos.items():
        for exp_id, expression in field(entry, "expressions", dict, path, video).items():
            where = f"{video}, expression {exp_id}"
            kind = field(expression, "type", str, path, where)
            out[video, exp_id] = (kind, field(expression, "predicate", str, path, where))
    return out


def means(result: dict[str, Any], table: dict[tuple[str, str], tuple[str, str]]) -> dict[str, tuple[float, int]]:
    """Column -> (mean J&F, expressions)."""
    values: dict[str, list[float]] = defaultdict(list)
    for one in result["expressions"]:
        key = (one["video"], one["exp_id"])
        if key not in table:
            raise InputError(f"{key} is in the results, but not among the expressions of the set")
        for column, belongs in COLUMNS.items():
            if belongs(*table[key]):
                values[column].append(one["J&F"])
    return {column: (sum(v) / len(v), len(v)) for column, v in values.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mevis_exp_path", type=Path, required=True, help="meta_expressions.json of the set")
    parser.add_argument("results", nargs="+", metavar="NAME=FILE")
    args = parser.parse_args()
    table = kinds(args.mevis_exp_path)
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    counts: dict[str, int] = {}
    for named in args.results:
        name, _, file = named.rpartition("=")
        found = means(read_json(Path(file)), table)
        counts = {column: count for column, (_, count) in found.items()}
        cells = [f"{100 * found[column][0]:.1f}" if column in found else "-" for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("| *expressions* | " + " | ".join(f"*{counts.get(column, 0)}*" for column in COLUMNS) + " |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
