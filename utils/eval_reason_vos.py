"""Evaluate masks on ReasonVOS; `--help` shows the options."""

import sys

from glus.__main__ import guarded
from glus.evaluation.expression_commands import reason_vos_main

if __name__ == "__main__":
    sys.exit(guarded(reason_vos_main, sys.argv[1:]))
