"""Scores against true IoUs: `python -m kfs evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from glus.errors import InputError
from kfs.__main__ import COMMANDS
from kfs.evaluation import compare, measure, spearman, summarise
from kfs.key_frames import read_scores


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        one, other = rng.integers(0, 6, 20).tolist(), rng.random(20).tolist()
        assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert spearman([1, 2, 3], [0.1, 0.5, 0.9]) == pytest.approx(1)
    assert spearman([1, 1], [0.1, 0.5]) is None
    assert spearman([], []) is None


def test_what_a_choice_is_worth() -> None:
    found = measure([0.2, 0.9, 0.9, -3.0], (0.5, 0.25, 1.0, 0.75))
    assert (found.chosen, found.first, found.random, found.oracle) == (0.25, 0.5, 0.625, 1.0)
    hidden = measure([9.0, 0.5, 0.1], (None, 0.5, 0.25))
    assert (hidden.chosen, hidden.first, hidden.random, hidden.oracle) == (0, 0, 0.25, 0.5)
    assert hidden.rank == pytest.approx(1), "the frame without an IoU has no rank"
    whole = summarise([found, hidden, measure([1.0, 2.0], (1.0, 1.0))])
    assert (whole.expressions, whole.ranked) == (3, 2)
    assert whole.chosen == pytest.approx(1.25 / 3)
    with pytest.raises(ValueError, match="2 scores and 1 IoUs"):
        measure([1.0, 2.0], (0.5,))


def write(folder: Path, scores: dict[str, list[float]], ious: dict[str, list[float | None]]) -> tuple[Path, Path]:
    for exp_id, values in scores.items():
        for frame, value in enumerate(values):
            path = folder / f"scores/v/{exp_id}/{5 * frame:05d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"iou": value}))
    for exp_id, targets in ious.items():
        path = folder / f"ious/v/{exp_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(targets))
    return folder / "scores", folder / "ious"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, ious = write(tmp_path, {"0": [1, 3, 2], "1": [1, 2, 3]}, {"0": [0.0, 0.5, 1.0]})
    assert COMMANDS.run(["evaluate", str(scores), str(ious), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "expressions": 1,
        "ranked": 1,
        "rank_correlation": pytest.approx(0.5),
        "chosen": 0.5,
        "first": 0.0,
        "random": 0.5,
        "oracle": 1.0,
    }
    assert COMMANDS.run(["evaluate", str(scores), str(ious)]) == 0
    said = capsys.readouterr().out
    assert "rank correlation 0.500 (over 1 expressions)" in said
    assert "mean IoU at the best frame (oracle)" in said


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    scores, ious = write(tmp_path, {"0": [1, 3, 2]}, {"0": [0.0, 0.5, 1.0], "1": [0.0, 0.5, 1.0]})
    with pytest.raises(InputError, match=r"1\.json has no scores"):
        compare(read_scores(scores), ious)
    (ious / "v/1.json").unlink()
    (ious / "v/0.json").write_text("[0.5]")
    with pytest.raises(InputError, match="1 IoUs for 3 frames"):
        compare(read_scores(scores), ious)
    (ious / "v/0.json").unlink()
    with pytest.raises(InputError, match="no IoU file for any"):
        compare(read_scores(scores), ious)
    with pytest.raises(InputError, match="no folder of IoU files"):
        compare(read_scores(scores), tmp_path / "nowhere")
