"""Evaluate masks on Ref-DAVIS17; `--help` shows the options."""

import sys

from glus.__main__ import guarded
from glus.evaluation.expression_commands import davis_main

if __name__ == "__main__":
    sys.exit(guarded(davis_main, sys.argv[1:]))
