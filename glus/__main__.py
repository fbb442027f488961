"""`python -m glus <command>`: the table of commands and how they end.

Exit status: 0 done, 2 bad arguments or input (`InputError`), 1 anything else.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from glus.commands import Command, CommandTable
from glus.errors import InputError

COMMANDS = CommandTable(
    "python -m glus",
    "command",
    {
        "segment": ("glus.inference.segment_command:main", "segment your own video by one or more sentences"),
        "app": (
            "glus.app.command:main",
            "a page in the browser: your video and sentences in, masks to see and keep",
        ),
        "infer": ("glus.inference.infer_command:main", "run a data set through the model, sharded and resumable"),
        "eval": ("glus.evaluation.command:main", "score masks by the protocol of a data set"),
        "train": ("glus.training.command:main", "train a model; a stopped run goes on where it was"),
        "pretrain": ("glus.training.pretraining.command:main", "pretrain a small GLUS on synthetic videos"),
        "merge": ("glus.training.merge_command:main", "turn a training checkpoint into a model one can load"),
        "report": ("glus.report.command:main", "compare results with the truth and each other: one HTML page"),
        "models": ("glus.registry:main", "list known weights: source, size, licence, expected score"),
        "doctor": ("glus.doctor:main", "say what this machine has, what will run on it, and what to do"),
        "data": ("glus.data.command:main", "make, import or check a data set, write a submission zip"),
    },
)


def guarded(command: Command, argv: Sequence[str]) -> int:
    """Run a command and turn an `InputError` into one line on stderr and status 2."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return command(argv)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what is complete stays, run the same command again to continue\n")
        return 130


def main(argv: Sequence[str]) -> int:
    # torch's CPU threads spin while they wait; where others use the cores too, that made a run 10 times slower.
    # OpenMP reads this once, when torch is imported by the command.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return COMMANDS.run(argv, guarded)


def run() -> None:
    """Entry point of the `glus` console script."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
