"""Evaluate masks on ReVOS; `--help` shows the options."""

import sys

from glus.__main__ import guarded
from glus.evaluation.expression_commands import revos_main

if __name__ == "__main__":
    sys.exit(guarded(revos_main, sys.argv[1:]))
