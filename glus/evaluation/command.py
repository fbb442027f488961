"""`python -m glus eval <data set>`: the table of evaluators; `utils/eval_*.py` run the same ones."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# name -> (module, its `main(argv, prog) -> int`, help line). Modules load only when their command runs.
_EXPRESSIONS = "glus.evaluation.expression_commands"
COMMANDS: dict[str, tuple[str, str, str]] = {
    "mevis": (_EXPRESSIONS, "mevis_main", "MeViS valid_u, and any set in its layout"),
    "davis": (_EXPRESSIONS, "davis_main", "Ref-DAVIS17, expression by expression or by its four annotators"),
    "revos": (_EXPRESSIONS, "revos_main", "ReVOS, with accuracy and robustness"),
    "reason_vos": (_EXPRESSIONS, "reason_vos_main", "ReasonVOS"),
    "refytvos": (_EXPRESSIONS, "refytvos_main", "Ref-YouTube-VOS, with label maps of your own"),
    "davis-official": (
        "glus.evaluation.davis_command",
        "official_main",
        "label maps by the official DAVIS 2017 protocols or vos-benchmark's",
    ),
}


def usage() -> str:
    lines = ["usage: python -m glus eval DATASET [options]", "", "data sets:"]
    lines += [f"  {name:<15} {text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join([*lines, "", "python -m glus eval DATASET --help shows the options of one."])


def main(argv: Sequence[str]) -> int:
    """Run an evaluator; the status is that of `python -m glus` (0 done, 2 bad arguments or input)."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage() + "\n")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        sys.stderr.write(f"error: unknown data set {argv[0]!r}\n{usage()}\n")
        return 2
    module, function, _ = COMMANDS[argv[0]]
    evaluate = getattr(importlib.import_module(module), function)
    return int(evaluate(argv[1:], f"python -m glus eval {argv[0]}"))
