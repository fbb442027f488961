"""Merge folders of IoU files; `--help` shows the options."""

import sys

from glus.__main__ import guarded
from kfs.merge_folders import main

if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
