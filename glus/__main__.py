"""`python -m glus <command>`: the table of commands and how they end.

Exit status: 0 done, 2 bad arguments or input (`InputError`), 1 anything else.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

from glus.errors import InputError

# command -> (module holding `main(argv) -> int`, help line). Modules load only when their command runs.
COMMANDS: dict[str, tuple[str, str]] = {
    "segment": ("glus.inference.segment_command", "segment your own video by one or more sentences"),
    "infer": ("glus.inference.infer_command", "run a data set through the model, sharded and resumable"),
    "eval": ("glus.evaluation.command", "score masks by the protocol of a data set"),
    "report": ("glus.inference.report", "write an HTML report and overlay videos on a finished run"),
    "data": ("glus.data.command", "make the synthetic set, check a data set, write a submission zip"),
}


def usage() -> str:
    lines = ["usage: python -m glus COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([*lines, "", "python -m glus COMMAND --help shows the options of a command."])


def guarded(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command's `main` and turn an `InputError` into one line on stderr and status 2."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return main(argv)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what is complete stays, run the same command again to continue\n")
        return 130


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage() + "\n")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        sys.stderr.write(f"error: unknown command {argv[0]!r}\n{usage()}\n")
        return 2
    # torch's CPU threads spin while they wait; where others use the cores too, that made a run 10 times slower.
    # OpenMP reads this once, when torch is imported by the command.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module = importlib.import_module(COMMANDS[argv[0]][0])
    return guarded(module.main, argv[1:])


def run() -> None:
    """Entry point of the `glus` console script."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
