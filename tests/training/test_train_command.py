"""`python -m glus train` from its options to a loadable folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_config
from tiny_text import tiny_tokenizer
from training_trees import write_tree

from glus.api import GLUS
from glus.data.datasets import load_records
from glus.errors import InputError
from glus.training import command
from glus.training.failures import NonFiniteLoss
from glus.training.launch import Place
from glus.training.merge import export_checkpoint
from glus.training.validation import records_held_out


@pytest.fixture
def recipe(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a short run of a tiny new model on generated videos."""
    monkeypatch.setattr("glus.training.launch.join", lambda: place)
    tiny_tokenizer().save(tmp_path / "tokenizer")
    sizes = tiny_config().to_dict()
    del sizes["language"]["vocab_size"]
    (tmp_path / "sizes.yaml").write_text(yaml.safe_dump(sizes))
    content = {
        "model": {"sizes": str(tmp_path / "sizes.yaml"), "tokenizer": str(tmp_path / "tokenizer")},
        "trainable": "all",
        "lora": {"r": 2},
        "data": {
            "refer_video_seg_data": "synthetic",
            "synthetic": {"width": 64, "height": 64, "frames": 8, "min_sentences": 1, "max_sentences": 2},
            "num_classes_per_sample": 2,
            "context_frame_num": 1,
            "question_frame_num": 2,
        },
        "loop": {
            "steps": 2,
            "batch_size": 1,
            "grad_accumulation_steps": 1,
            "workers": 0,
            "precision": "fp32",
            "deepspeed": {"stage": 0},
            "logging": {"tensorboard": False, "progress": False},
        },
        "validation": {"dataset": "synthetic", "limit": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    return ["--config", str(tmp_path / "run.yaml"), "--log_dir", str(tmp_path / "run")]


def test_a_dry_run_shows_all_and_writes_nothing(
    tmp_path: Path, recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert command.main([*recipe, "--dry_run", "--validate_every", "1"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    for words in ("LoRA", "SAM-2 image encoder", "total", "one step: ", "samples/s", "1 samples a step, 2 steps"):
        assert words in said


def test_a_run_ends_with_a_model_one_can_load(
    tmp_path: Path, recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped by its time limit first; then it goes on, validates, folds LoRA in and exports."""
    log_dir = tmp_path / "run"
    assert command.main([*recipe, "--max_minutes", "1e-9"]) == 0
    assert not (log_dir / "model").exists()
    assert command.main([*recipe, "--validate_every", "2"]) == 0
    said = capsys.readouterr().out
    assert "trained 2 steps; best J&F " in said
    assert said.endswith(f"{log_dir / 'model'}\n")
    glus = GLUS.from_pretrained(log_dir / "model")
    glus.self_check()
    saved = torch.load(log_dir / "checkpoints/step-00000002/mp_rank_00_model_states.pt")["module"]
    name = "sam.no_mem_embed"
    assert torch.equal(glus.model.state_dict()[name], saved[f"module.model.{name}"])
    assert not any("lora" in name for name in glus.model.state_dict())
    assert command.main([*recipe, "--validate_every", "2"]) == 0  # nothing left to do: exports again


def test_the_tokenizer_of_an_earlier_run_stays_with_it(tmp_path: Path, recipe: list[str]) -> None:
    """A refused run writes none over it, and a run moved aside can still be exported."""
    log_dir = tmp_path / "run"
    assert command.main([*recipe, "--max_minutes", "1e-9"]) == 0
    kept = log_dir / "tokenizer/added_tokens.json"
    kept.write_text(kept.read_text() + "\n")
    with pytest.raises(InputError, match=r"loop\.seed 9 instead of"):
        command.main([*recipe, "--set", "loop.seed=9"])
    assert kept.read_text().endswith("\n")
    assert command.main([*recipe, "--set", "loop.seed=9", "--no_resume"]) == 0
    export_checkpoint(log_dir / "before-1", tmp_path / "merged")
    GLUS.from_pretrained(tmp_path / "merged").self_check()


def test_a_loss_that_is_not_a_number_is_status_1(
    recipe: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise NonFiniteLoss("step 1: the loss is nan")

    monkeypatch.setattr("glus.training.trainer.Trainer.run", fail)
    assert command.main(recipe) == 1
    assert "error: step 1: the loss is nan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--refer_video_seg_data", "mevis||lvvis", "--sample_rates", "1"], "2 data sets .* but 1 sample rates"),
        (["--refer_video_seg_data", "davis16", "--sample_rates", "1"], "unknown data set 'davis16'"),
        (["--refer_video_seg_data", "mevis", "--sample_rates", "1", "--dataset_dir", "no/where"], "no/where"),
        (["--set", "model.tokenizer=no/where"], "no/where"),
        (["--set", "model.sizes=no/where.yaml"], "no/where.yaml cannot be read"),
        (["--validate_every", "1", "--set", "validation.dataset=mevis", "--dataset_dir", "no/where"], "no/where"),
    ],
)
def test_bad_input_is_named(recipe: list[str], argv: list[str], words: str) -> None:
    """D41, D42 through the command."""
    with pytest.raises(InputError, match=words):
        command.main([*recipe, *argv])


def test_frames_that_validation_lacks_are_named_before_training(tmp_path: Path) -> None:
    write_tree(tmp_path, "mevis")
    assert records_held_out("mevis", tmp_path, "train", 1000)
    frame = load_records("mevis", tmp_path, "train")[-1].frame_path(1)
    frame.unlink()
    with pytest.raises(InputError, match=f"1 frame files are missing, .*{frame.name}"):
        records_held_out("mevis", tmp_path, "train", 1000)


def test_nothing_to_start_from_is_said() -> None:
    with pytest.raises(InputError, match="nothing to start from: give --version"):
        command.main([])


def test_help_answers_without_torch() -> None:
    code = (
        "import sys\nfrom glus.training.command import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--refer_video_seg_data" in done.stdout
    assert "--vqa_data" not in done.stdout
