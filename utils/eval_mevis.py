"""Evaluate masks on MeViS valid_u; `--help` shows the options."""

import sys

from glus.__main__ import guarded
from glus.evaluation.expression_commands import mevis_main

if __name__ == "__main__":
    sys.exit(guarded(mevis_main, sys.argv[1:]))
