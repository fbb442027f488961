"""`python -m glus infer` with `fake_worker` in place of the real one."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from glus.__main__ import guarded
from glus.inference import infer_command

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))

if __name__ == "__main__":
    sys.exit(guarded(partial(infer_command.main, worker_command=WORKER), sys.argv[1:]))
