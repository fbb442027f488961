"""The training scripts: what they start, and the real thing in the small (defects D38 and D39)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tiny import tiny_config, tiny_glus
from training_trees import TRAINABLE, write_tree

from glus.api import GLUS
from glus.training.config import TrainConfig, merge, read_content, train_config
from glus.training.flags import given, overrides

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("train.sh", "train_glus_s.sh", "train_glus_a.sh", "train_tiny.sh", "merge.sh")
VARIABLES = ("DATA_DIR", "CKPT_DIR", "OUT_DIR", "MODEL", "NUM_GPUS", "HOSTFILE", "COMPAT", "CONFIG", "EXP_NAME")


def script(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script without a GPU; variables of the surrounding shell do not count."""
    kept = {
        k: v for k, v in os.environ.items() if k not in (*VARIABLES, "CUDA_VISIBLE_DEVICES") and "SLURM" not in k
    }
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / name), *arguments],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


@pytest.fixture
def stub(tmp_path: Path) -> str:
    """An environment whose python only tells how it was called."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\necho "[${CUDA_VISIBLE_DEVICES-unset}]"\n')
    python.chmod(0o755)
    return str(tmp_path / "venv")


def called(stub: str, name: str, *arguments: str, **variables: str) -> list[str]:
    done = script(name, *arguments, VENV=stub, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def options(words: list[str]) -> dict[str, str]:
    """The options of `train` or `merge`; each once and none of them stray (D39)."""
    start = next(i for i, word in enumerate(words) if word in ("train", "merge"))
    named = words[start + 1 : -1]
    flags = [word for word in named if word.startswith("-")]
    assert not [flag for flag, count in Counter(flags).items() if count > 1]
    assert not any("\\" in word for word in words)
    assert len(named) % 2 == 0
    pairs = dict(zip(named[::2], named[1::2], strict=True))
    assert all(flag.startswith("--") for flag in pairs)
    return pairs


def config_of(words: list[str]) -> TrainConfig:
    """What `python -m glus train` makes of a script's call."""
    args = given(words[words.index("train") + 1 : -1])
    return train_config(merge(read_content(args.config), overrides(args)), args.config)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name: str) -> None:
    done = script(name, "--help")
    assert done.returncode == 0
    assert "usage:" in done.stdout
    for variable in ("OUT_DIR", "VENV"):
        assert variable in done.stdout
    subprocess.run(["bash", "-n", str(ROOT / "scripts" / name)], check=True)


@pytest.mark.parametrize("run", ["glus_s", "glus_a"])
def test_each_recipe_keeps_to_its_own_folder(stub: str, run: str) -> None:
    """D38, D39: the original exports GLUS-A from GLUS-S's folder, and its merge command breaks off."""
    train = options(called(stub, f"train_{run}.sh", NUM_GPUS="0", OUT_DIR="/runs"))
    assert (train["--log_base_dir"], train["--exp_name"]) == ("/runs", run)
    assert Path(train["--config"]).resolve() == ROOT / "configs" / f"train_{run}.yaml"
    merged = options(called(stub, "merge.sh", OUT_DIR="/runs", EXP_NAME=run, LAYOUT="released"))
    assert merged == {
        "--weight": f"/runs/{run}",
        "--save_path": f"/runs/{run}/model_released",
        "--layout": "released",
    }


def test_variables_and_arguments(stub: str, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    (parts / "clip-vit-large-patch14").mkdir(parents=True)
    words = called(stub, "train_glus_s.sh", "--lr", "1e-4", NUM_GPUS="0", CKPT_DIR=str(parts), DATA_DIR="/d")
    assert words[:2] == ["-m", "glus"]
    assert words[-1] == "[]"  # no GPU is shown to it
    found = options(words)
    assert found["--dataset_dir"] == "/d"
    assert found["--version"] == str(parts / "LISA-7B-v1")
    assert found["--vision_pretrained"] == str(parts / "sam2_hiera_large.pt")
    assert found["--vision-tower"] == str(parts / "clip-vit-large-patch14")
    assert found["--lr"] == "1e-4"
    own = options(called(stub, "train_glus_s.sh", NUM_GPUS="1", MODEL="/m", CKPT_DIR=str(parts)))
    assert own["--version"] == "/m"
    assert not {"--vision_pretrained", "--vision-tower"} & set(own)


def test_launchers_of_several_processes(stub: str, tmp_path: Path) -> None:
    several = called(stub, "train_glus_a.sh", NUM_GPUS="4")
    assert several[:7] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4", "-m", "glus"]
    assert called(stub, "train_glus_a.sh", CUDA_VISIBLE_DEVICES="2,5")[4] == "2"
    assert called(stub, "train_glus_a.sh", CUDA_VISIBLE_DEVICES="")[:3] == ["-m", "glus", "train"]
    nodes = tmp_path / "nodes"
    nodes.write_text("one slots=8\ntwo slots=8\n")
    spread = called(stub, "train_glus_a.sh", HOSTFILE=str(nodes), NUM_GPUS="8")
    assert spread[:2] == ["-m", "deepspeed.launcher.runner"]
    assert spread[2 : spread.index("train")] == [
        *("--hostfile", str(nodes), "--num_gpus", "8", "--no_local_rank", "--module", "glus"),
    ]
    task = called(stub, "train_glus_a.sh", NUM_GPUS="8", SLURM_STEP_NUM_TASKS="16", SLURM_PROCID="3")
    assert task[:3] == ["-m", "glus", "train"]
    options(several), options(spread), options(task)


def test_faults(stub: str, tmp_path: Path) -> None:
    for done, message in (
        (script("train_glus_s.sh", VENV=str(tmp_path)), "no environment at"),
        (script("merge.sh", VENV=str(tmp_path)), "no environment at"),
        (script("train.sh", VENV=stub, HOSTFILE="/nothing"), "no HOSTFILE at /nothing"),
        (script("train.sh", VENV=stub, NUM_GPUS="two"), "NUM_GPUS must be a number"),
    ):
        assert done.returncode == 2
        assert message in done.stderr


def test_the_released_recipes_to_the_letter(stub: str) -> None:
    """Reference glus.md 4.5, 5, 6.1."""
    for run, steps, contrastive, rates in (
        ("glus_s", 30 * 100, True, {"mevis": 1, "refyoutube_vos": 1}),
        ("glus_a", 50 * 100, False, {"mevis": 40, "refyoutube_vos": 150, "davis17": 4, "revos": 30, "lvvis": 30}),
    ):
        config = config_of(called(stub, f"train_{run}.sh", NUM_GPUS="0", COMPAT="released"))
        names, weights = config.data.refer_video_seg_data.split("||"), config.data.sample_rates.split(",")
        assert dict(zip(names, map(int, weights), strict=True)) == rates
        assert (config.loop.steps, config.use_contrastive_loss) == (steps, contrastive)
        assert (config.loop.batch_size, config.loop.grad_accumulation_steps, config.loop.precision) == (
            2,
            10,
            "bf16",
        )
        optimizer = config.loop.optimizer
        assert (optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (3e-4, 0.9, 0.95, 0)
        assert (optimizer.grad_clip, optimizer.warmup_steps, optimizer.decay) == (1.0, 100, "linear")
        assert optimizer.first_step == "full"  # D36
        assert (config.lora.r, config.lora.alpha, config.lora.dropout, config.lora.targets) == (
            *(8, 16, 0.05),
            ("q_proj", "v_proj"),
        )
        weights = config.objective.weights
        assert (weights.ce, weights.bce, weights.dice, weights.contrastive) == (1.0, 2.0, 0.5, 0.1)
        rules = config.objective.rules
        assert (rules.overlap, rules.single_contrastive_token) == ("sum", False)  # D16, D19
        assert (rules.same_object_negatives, rules.fp32) == (True, False)
        assert config.model.memory_dropout
        assert (config.data.num_classes_per_sample, config.data.context_frame_num) == (3, 4)
        assert (config.data.question_frame_num, config.loop.deepspeed.stage, config.trainable) == (
            4,
            2,
            "released",
        )
        ours = config_of(called(stub, f"train_{run}.sh", NUM_GPUS="0"))
        assert ours.loop.optimizer.first_step == "warmup"
        assert ours.objective.rules.overlap == "union"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "tiny"
    tiny_glus(tiny_config()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in TRAINABLE:
        write_tree(folder, name)
    return folder


def this_environment(tmp_path: Path) -> str:
    """A VENV with this interpreter."""
    python = tmp_path / "this" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(tmp_path / "this")


def test_glus_a_trains_exports_and_merges(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """All five data sets, one step, without a GPU; the export loads, and merging again in the released layout
    leaves the first one alone (D38)."""
    pytest.importorskip("deepspeed")
    variables = {
        **{"MODEL": str(checkpoint), "DATA_DIR": str(data), "OUT_DIR": str(tmp_path / "out"), "NUM_GPUS": "0"},
        **{"VENV": this_environment(tmp_path), "OMP_NUM_THREADS": "1", "EXP_NAME": "glus_a"},
    }
    small = ["--steps", "1", "--batch_size", "1", "--grad_accumulation_steps", "1", "--precision", "fp32"]
    small += ["--workers", "0"]
    dry = script("train_glus_a.sh", *small, "--dry_run", **variables)
    assert dry.returncode == 0, dry.stderr
    assert "LoRA" in dry.stdout
    assert "one step:" in dry.stdout
    assert not (tmp_path / "out").exists()
    done = script("train_glus_a.sh", *small, **variables)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "out" / "glus_a"
    assert done.stdout.splitlines()[-1] == str(run / "model")
    assert not (tmp_path / "out" / "glus_s").exists()
    assert GLUS.from_pretrained(run / "model", device="cpu").self_check().deviations
    stamp = (run / "model" / "config.json").stat().st_mtime_ns
    merged = script("merge.sh", LAYOUT="released", **variables)
    assert merged.returncode == 0, merged.stderr
    assert json.loads((run / "model_released" / "config.json").read_text())["model_type"] == "llava"
    assert (run / "model" / "config.json").stat().st_mtime_ns == stamp
    shutil.rmtree(run / "checkpoints")
    assert script("merge.sh", **variables).returncode == 2
