"""What the documents name exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from glus.__main__ import main
from kfs.__main__ import main as kfs_main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PLACES = r"(?:glus|kfs|tests|utils|scripts|benchmarks|configs|docs|checkpoints)/[\w./-]*[\w-]"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    named = set(re.findall(rf"(?<![\w/.]){PLACES}(?![\w*])", document.read_text()))
    assert not sorted(name for name in named if not (ROOT / name).exists())


def test_every_defect_names_tests_that_exist() -> None:
    texts = [(ROOT / "docs" / name).read_text() for name in ("fidelity.md", "kfs.md")]
    rows = [line for text in texts for line in text.splitlines() if "::" in line and line.startswith("|")]
    assert len(rows) > 20
    for row in rows:
        path = ""
        for file, name in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", row):
            path = file or path
            assert f"\ndef {name}(" in (ROOT / path).read_text(), (path, name)


def commands() -> Iterator[tuple[str, list[str]]]:
    """(document, words) of every command in a block of shell."""
    for document in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield document.name, words


@cache
def help_of(*program: str) -> str:
    done = subprocess.run([*program, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (program, done.stderr)
    return done.stdout


def test_commands_in_the_documents_take_the_options_they_show(capsys: pytest.CaptureFixture[str]) -> None:
    known: dict[str, str] = {}

    def options_of(words: list[str]) -> str:
        """The help of a command of the package, or of the launcher that passes its options on."""
        name = " ".join(words)
        if name not in known:
            program, *command = words
            with pytest.raises(SystemExit) as stop:
                {"glus": main, "kfs": kfs_main}[program]([*command, "--help"])
            assert stop.value.code == 0
            known[name] = capsys.readouterr().out
        return known[name]

    seen = 0
    for document, words in commands():
        options = [word.split("=")[0] for word in words if word.startswith("--") and word != "--help"]
        if words[:2] == ["python", "-m"] and words[2] in ("glus", "kfs"):
            depth = 5 if words[3] in ("data", "eval") else 4
            text = options_of(words[2:depth])
        elif words[0] == "python" and words[1].startswith(("utils/", "scripts/", "benchmarks/", "kfs/")):
            text = help_of(sys.executable, words[1])
        elif words[0] == "bash" and options:
            text = help_of("bash", words[1]) + "".join(map(options_of, PASSED_ON.get(words[1], ())))
        else:
            continue
        seen += 1
        assert not [option for option in options if option not in text], (document, words)
    assert seen >= 20


PASSED_ON = {
    "scripts/inference.sh": (["glus", "infer"],),
    "scripts/inference_kf.sh": (["glus", "infer"],),
    "scripts/train.sh": (["glus", "train"],),
    "scripts/train_glus_s.sh": (["glus", "train"],),
    "scripts/train_glus_a.sh": (["glus", "train"],),
    "scripts/merge.sh": (["glus", "merge"],),
    "kfs/scripts/train_kfs.sh": (["kfs", "train"],),
}
"""What launchers hand their further options to."""


def test_the_page_of_the_api_is_up_to_date() -> None:
    made = subprocess.run([sys.executable, "scripts/make_api_docs.py", "--check"], cwd=ROOT, check=False)
    assert made.returncode == 0, "run python scripts/make_api_docs.py"
