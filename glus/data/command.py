"""`python -m glus data <what>`: the table of data commands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# name -> (module holding `main(argv) -> int`, help line). Modules load only when their command runs.
COMMANDS: dict[str, tuple[str, str]] = {
    "synthetic": ("glus.data.synthetic.writer", "write a synthetic set of referring videos"),
    "check": ("glus.data.check", "verify a data set: counts, files, JSON fields, masks"),
    "submit": ("glus.data.submit", "write and validate a submission zip"),
}


def usage() -> str:
    lines = ["usage: python -m glus data COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([*lines, "", "python -m glus data COMMAND --help shows the options of a command."])


def main(argv: Sequence[str]) -> int:
    """Run a data command; the status is that of `python -m glus` (0 done, 2 bad arguments or input)."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage() + "\n")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        sys.stderr.write(f"error: unknown data command {argv[0]!r}\n{usage()}\n")
        return 2
    module = importlib.import_module(COMMANDS[argv[0]][0])
    return int(module.main(argv[1:]))
