"""bash scripts/quickstart.sh, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_it_ends_with_the_score_and_the_report(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "OUT_DIR": str(tmp_path),
        "VIDEOS": "1",
        "WORKERS": "1",
        "VENV": str(Path(sys.executable).parents[1]),
    }
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "quickstart.sh")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    score, report = done.stdout.splitlines()[-2:]
    found = re.fullmatch(r"J&F (\d+\.\d+)", score)
    assert found, done.stdout[-500:]
    assert float(found[1]) == round(100 * json.loads((tmp_path / "scores.json").read_text())["J&F"], 2)
    assert Path(report).is_file()
    assert Path(report).suffix == ".html"
