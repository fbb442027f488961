"""DAVIS 2017 scores of label maps, by the official protocols or vos-benchmark's. See --help."""

import sys

from glus.__main__ import guarded
from glus.evaluation.davis_command import official_main

if __name__ == "__main__":
    sys.exit(guarded(official_main, sys.argv[1:]))
