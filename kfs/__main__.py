"""`python -m kfs <command>`: the commands of the key-frame selector; they end as those of `python -m glus`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from glus.__main__ import guarded
from glus.commands import CommandTable

COMMANDS = CommandTable(
    "python -m kfs",
    "command",
    {
        "annotate": (
            "kfs.annotate:main",
            "write the IoU of every frame of a set, which a selector learns",
        ),
        "train": ("kfs.train_command:main", "train a selector; a stopped run goes on where it was"),
        "merge": ("kfs.merge_command:main", "turn a training checkpoint into a selector one can load"),
        "score": ("kfs.score_command:main", "score all frames of a data set, sharded and resumable"),
        "evaluate": ("kfs.evaluate_command:main", "compare scores with true IoUs: rank correlation, chosen frame"),
        "key_frames": ("kfs.key_frames:main", "choose the frame with the highest score of every expression"),
    },
)


def main(argv: Sequence[str]) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # why: see `glus.__main__.main`
    return COMMANDS.run(argv, guarded)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
