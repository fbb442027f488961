"""What the extraction refuses, how it decides ties, and what it writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glus.__main__ import guarded
from glus.errors import InputError
from kfs import key_frames

ROOT = Path(__file__).resolve().parents[2]
SCORES = {"a/0": {"00000": 0.25, "00005": 0.5, "00010": 0.5}, "a/1": {"00000": 2, "00005": -1.0, "00010": 0.0}}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "scores"
    for place, frames in SCORES.items():
        (folder / place).mkdir(parents=True)
        for name, score in frames.items():
            (folder / place / f"{name}.json").write_text(json.dumps({"iou": score}))
    return folder


def test_both_forms_by_the_script(tree: Path, tmp_path: Path) -> None:
    (tree / "a" / "0" / ".tmp-1-00000.json").write_text("half")
    script = ROOT / "kfs" / "utils" / "extract_key_frame.py"
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    outputs = ["--out", str(tmp_path / "out.json"), "--detailed", str(tmp_path / "detailed.json")]
    done = subprocess.run([sys.executable, "-c", code, str(script), str(tree), *outputs], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "out.json").read_text()) == {"a_0": 5, "a_1": 0}
    detailed = json.loads((tmp_path / "detailed.json").read_text())
    assert detailed["a"]["0"] == {"key_frame": "00005", "score": 0.5, "scores": SCORES["a/0"]}
    assert list(detailed["a"]) == ["0", "1"]


def test_names_of_videos_may_have_parts(tree: Path) -> None:
    """ReVOS has such."""
    shutil.copytree(tree / "a", tree / "part" / "b")
    shutil.copytree(tree / "a", tree / "part" / "c")
    found = key_frames.read_scores(tree)
    assert list(found) == ["a", "part/b", "part/c"]
    assert found["part/c"] == found["a"] == {name[-1]: frames for name, frames in SCORES.items()}
    (tree / "part" / "d").mkdir()
    assert f"{tree / 'part' / 'd'} holds no score files" in refusal(tree)


def test_frames_are_ordered_by_number(tree: Path) -> None:
    shutil.rmtree(tree / "a" / "1")
    for name in ("9", "10"):
        (tree / "a" / "0" / f"{name}.json").unlink(missing_ok=True)
    (tree / "a" / "0" / "00010.json").rename(tree / "a" / "0" / "10.json")
    (tree / "a" / "0" / "00005.json").rename(tree / "a" / "0" / "9.json")
    assert [k.name for k in key_frames.choose(key_frames.read_scores(tree))] == ["9"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"iou": NaN}', "00005.json: the score is nan"),
        ('{"iou": -Infinity}', "00005.json: the score is -inf"),
        ('{"iou": "0.5"}', "iou must be int or float"),
        ('{"score": 0.5}', "no field 'iou'"),
        ('{"iou": 0.', "not valid JSON"),
    ],
)
def test_bad_scores(
    tree: Path, tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "a" / "1" / "00005.json").write_text(text)
    out = tmp_path / "out.json"
    out.write_text("as before")
    assert guarded(key_frames.main, [str(tree), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert out.read_text() == "as before"


def refusal(tree: Path, *more: str) -> str:
    with pytest.raises(InputError) as caught:
        key_frames.main([str(tree), "--out", str(tree.parent / "out.json"), *more])
    assert not (tree.parent / "out.json").exists()
    return str(caught.value)


def test_empty_and_missing_folders(tree: Path) -> None:
    assert "not a folder" in refusal(tree / "none")
    (tree / "b").mkdir()
    assert f"{tree / 'b'} holds no folders" in refusal(tree)
    (tree / "b" / "0").mkdir()
    assert f"{tree / 'b' / '0'} holds no score files" in refusal(tree)


def test_frames_that_do_not_fit(tree: Path) -> None:
    (tree / "a" / "1" / "00010.json").rename(tree / "a" / "1" / "00015.json")
    assert "unlike those of expression 0: 00010 has no scores" in refusal(tree)
    (tree / "a" / "1" / "00015.json").rename(tree / "a" / "1" / "5.json")
    assert "are the same frame" in refusal(tree)
    (tree / "a" / "1" / "5.json").rename(tree / "a" / "1" / "last.json")
    assert "must be a number" in refusal(tree)


def test_against_a_data_set(tree: Path, tmp_path: Path) -> None:
    meta = tmp_path / "meta_expressions.json"

    def listed(frames: list[str], expressions: list[str], videos: tuple[str, ...] = ("a",)) -> str:
        entry = {"frames": frames, "expressions": {name: {"exp": "it"} for name in expressions}}
        meta.write_text(json.dumps({"videos": dict.fromkeys(videos, entry)}))
        return refusal(tree, "--meta", str(meta))

    names = list(SCORES["a/0"])
    assert "00015 has no scores (4 wanted, 3 scored)" in listed([*names, "00015"], ["0", "1"])
    assert "00010 has scores but is not in the list" in listed(names[:2], ["0", "1"])
    assert "expressions of video a: 2 has no scores" in listed(names, ["0", "1", "2"])
    assert "videos: b has no scores" in listed(names, ["0", "1"], ("a", "b"))


def test_keys_that_collide(tree: Path) -> None:
    (tree / "a_1" / "2").mkdir(parents=True)
    shutil.copytree(tree / "a" / "0", tree / "a" / "1_2")
    shutil.copy(tree / "a" / "0" / "00000.json", tree / "a_1" / "2")
    assert "two expressions have the key a_1_2" in refusal(tree)
