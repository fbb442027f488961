"""`python -m glus data <what>`: the table of data commands."""

from __future__ import annotations

from collections.abc import Sequence

from glus.commands import CommandTable

COMMANDS = CommandTable(
    "python -m glus data",
    "command",
    {
        "synthetic": ("glus.data.synthetic.writer:main", "write a synthetic set of referring videos"),
        "check": ("glus.data.check:main", "verify a data set: counts, files, JSON fields, masks"),
        "import": ("glus.data.importing:main", "turn your own data, COCO or YouTube-VIS into MeViS layout"),
        "submit": ("glus.data.submit:main", "write and validate a submission zip"),
    },
)


def main(argv: Sequence[str]) -> int:
    """Run a data command; the status is that of `python -m glus` (0 done, 2 bad arguments or input)."""
    return COMMANDS.run(argv)
