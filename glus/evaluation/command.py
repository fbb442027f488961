"""`python -m glus eval <data set>`: the table of evaluators; `utils/eval_*.py` run the same ones."""

from __future__ import annotations

from collections.abc import Sequence

from glus.commands import CommandTable

_EXPRESSIONS = "glus.evaluation.expression_commands"
COMMANDS = CommandTable(
    "python -m glus eval",
    "data set",
    {
        "mevis": (f"{_EXPRESSIONS}:mevis_main", "MeViS valid_u, and any set in its layout"),
        "davis": (f"{_EXPRESSIONS}:davis_main", "Ref-DAVIS17, expression by expression or by its four annotators"),
        "revos": (f"{_EXPRESSIONS}:revos_main", "ReVOS, with accuracy and robustness"),
        "reason_vos": (f"{_EXPRESSIONS}:reason_vos_main", "ReasonVOS"),
        "refytvos": (f"{_EXPRESSIONS}:refytvos_main", "Ref-YouTube-VOS, with label maps of your own"),
        "davis-official": (
            "glus.evaluation.davis_command:official_main",
            "label maps by the official DAVIS 2017 protocols or vos-benchmark's",
        ),
        "--all": ("glus.evaluation.all_command:main", "every results folder below a folder, in one table"),
    },
    names_program=True,
)


def main(argv: Sequence[str]) -> int:
    """Run an evaluator; the status is that of `python -m glus` (0 done, 2 bad arguments or input)."""
    return COMMANDS.run(argv)
