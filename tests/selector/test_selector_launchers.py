"""kfs/scripts/train_kfs.sh and scripts/train_kfs_tiny.sh: what they start (defects 6 and 9)."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from glus.training.config import merge, read_content
from kfs import annotate, evaluate_command, score_command, train_command
from kfs.recipe import SelectorTrainConfig, selector_train_config

ROOT = Path(__file__).resolve().parents[2]
TRAIN, TINY = "kfs/scripts/train_kfs.sh", "scripts/train_kfs_tiny.sh"
VARIABLES = ("DATA_DIR", "CKPT_DIR", "OUT_DIR", "MODEL", "NUM_GPUS", "HOSTFILE", "COMPAT", "CONFIG", "EXP_NAME")


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """An environment whose python only notes how it was called, in `calls` beside it."""
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/usr/bin/env bash\nprintf "%q " "$@" >>{tmp_path}/calls\necho >>{tmp_path}/calls\n')
    python.chmod(0o755)
    return tmp_path / "venv"


def calls(stub: Path, name: str, *arguments: str, **variables: str) -> list[list[str]]:
    kept = {
        k: v for k, v in os.environ.items() if k not in (*VARIABLES, "CUDA_VISIBLE_DEVICES") and "SLURM" not in k
    }
    (stub.parent / "calls").unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", str(ROOT / name), *arguments],
        env={**kept, "VENV": str(stub), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in (stub.parent / "calls").read_text().splitlines()]


def config_of(words: list[str]) -> SelectorTrainConfig:
    """What `python -m kfs train` makes of a script's call."""
    args = train_command.parser().parse_args(words[words.index("train") + 1 :])
    return selector_train_config(merge(read_content(args.config), train_command.overrides(args)), args.config)


@pytest.mark.parametrize("name", [TRAIN, TINY])
def test_help(name: str) -> None:
    done = subprocess.run(["bash", str(ROOT / name), "--help"], capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout
    assert all(variable in done.stdout for variable in ("OUT_DIR", "VENV"))


def test_the_recipe_and_its_variables(stub: Path, tmp_path: Path) -> None:
    (words,) = calls(stub, TRAIN, "--lr", "1e-4", NUM_GPUS="0", DATA_DIR="/d", IOU_PATH="a||b", CKPT_DIR="/c")
    assert words[:3] == ["-m", "kfs", "train"]
    config = config_of(words)
    assert (config.model.version, config.data.dataset_dir, config.data.iou_path) == ("/c/Chat-UniVi", "/d", "a||b")
    assert config.loop.optimizer.lr == 1e-4
    assert "outputs" in words
    assert "kfs" in words[words.index("--exp_name") :][:2]
    (released,) = calls(stub, TRAIN, NUM_GPUS="0", COMPAT="released", MODEL="/m", VISION_TOWER="/v")
    config = config_of(released)
    assert (config.compat, config.model.version, config.model.vision_tower) == ("released", "/m", "/v")
    assert not config.data.normalise_text
    (several,) = calls(stub, TRAIN, NUM_GPUS="2")
    assert several[:7] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "kfs"]
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"model": {"from_glus": "/g"}}))
    (started,) = calls(stub, TRAIN, NUM_GPUS="0", CONFIG=str(own))
    assert config_of(started).model.from_glus == "/g"
    assert started[started.index("--exp_name") + 1] == "own"


def test_all_stages_of_the_tiny_selector(stub: Path, tmp_path: Path) -> None:
    """Every call has options its command takes, and reads what an earlier one wrote."""
    out = tmp_path / "out"
    found = calls(stub, TINY, "--batch_size", "2", OUT_DIR=str(out), STEPS="7", VIDEO_OPTIONS="--frames 8")
    named = [words[2] if words[0] == "-m" else Path(words[0]).name for words in found]
    twice = ["data", "infer", "annotate"]
    assert named == [*twice, *twice, "train", "score", "evaluate", "infer", "eval_mevis.py", "eval_mevis.py"]
    videos, masks, ious = (words for words in found[:3])
    assert videos[-2:] == ["--frames", "8"]
    config = config_of(found[6])
    assert (config.loop.steps, config.loop.batch_size) == (7, 2)
    assert config.validation.iou_path == str(out / "ious_valid_u")
    assert config.data.dataset_dir == videos[videos.index("--out") + 1]
    annotated = annotate.parser().parse_args(ious[3:])
    assert str(annotated.pred_path) == masks[masks.index("--vis_save_path") + 1]
    assert str(annotated.iou_path) == config.data.iou_path
    scored = score_command.parser().parse_args(found[7][3:])
    assert scored.version == str(out / "train/model")
    assert (scored.max_image_token, config.validation.max_images) == (None, 9)  # the selector knows
    compared = evaluate_command.parser().parse_args(found[8][3:])
    assert (str(compared.scores), str(compared.ious)) == (scored.vis_save_path, config.validation.iou_path)
    assert found[9][found[9].index("--score_json") + 1] == f"{scored.vis_save_path}/{score_command.KEY_FRAMES}"
