"""Choose key frames from score files; `--help` shows the options."""

import sys

from glus.__main__ import guarded
from kfs.key_frames import main

if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
