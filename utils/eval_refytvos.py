"""Evaluate masks on Ref-YouTube-VOS with local masks; `--help` shows the options."""

import sys

from glus.__main__ import guarded
from glus.evaluation.expression_commands import refytvos_main

if __name__ == "__main__":
    sys.exit(guarded(refytvos_main, sys.argv[1:]))
