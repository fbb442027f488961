"""scripts/table_by_kind.py: means by kind, from the files themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "table_by_kind.py"
EXPRESSIONS = [
    ("static", "looks", 0.9),
    ("relation", "left_of", 0.5),
    ("motion", "moves_left", 0.2),
    ("motion", "ends_left_of", 0.8),
]


def write(folder: Path, drop: int = 0) -> list[str]:
    entries = {
        str(i): {"exp": "x", "type": kind, "predicate": claim} for i, (kind, claim, _) in enumerate(EXPRESSIONS)
    }
    for number in range(drop):
        del entries[str(number)]
    (folder / "meta.json").write_text(json.dumps({"videos": {"v": {"expressions": entries}}}))
    scores = [{"video": "v", "exp_id": str(i), "J&F": value} for i, (_, _, value) in enumerate(EXPRESSIONS)]
    (folder / "result.json").write_text(json.dumps({"expressions": scores}))
    return ["--mevis_exp_path", str(folder / "meta.json"), f"tiny={folder / 'result.json'}"]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_means_by_kind(tmp_path: Path) -> None:
    ended = run(write(tmp_path))
    assert ended.returncode == 0, ended.stderr
    head, _, row, counts = ended.stdout.splitlines()
    assert head == "| | all | static | relation | motion | motion, several frames needed |"
    assert row == "| tiny | 60.0 | 90.0 | 50.0 | 50.0 | 20.0 |"
    assert counts == "| *expressions* | *4* | *1* | *1* | *2* | *1* |"


def test_results_of_another_set_are_refused(tmp_path: Path) -> None:
    ended = run(write(tmp_path, drop=1))
    assert ended.returncode == 2
    assert "('v', '0') is in the results, but not among the expressions" in ended.stderr
