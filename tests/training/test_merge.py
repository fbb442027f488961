"""From checkpoint to loadable model: equal outputs, both layouts, what is refused (reference glus.md 2.4, 2.5)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import EXPRESSIONS, files_of, tiny_clip, tiny_config, tiny_glus
from training_samples import tiny_sample

from glus.__main__ import main as glus_command
from glus.api import GLUS
from glus.errors import InputError
from glus.modeling.checkpoints import read_folder
from glus.training.checkpointing import COMPLETE
from glus.training.forward import TrainingForward
from glus.training.merge import export_checkpoint

pytest.importorskip("deepspeed")
pytest.importorskip("peft")

WRITER = Path(__file__).with_name("write_checkpoint.py")


def write_run(folder: Path, precision: str, stage: int) -> Path:
    paths = os.pathsep.join([str(WRITER.parent), str(WRITER.parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, WRITER, folder, precision, str(stage)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in fp32 under ZeRO-2 with checkpoints of steps 3 (the best) and 4."""
    return write_run(tmp_path_factory.mktemp("run"), "fp32", 2)


@pytest.fixture(scope="module")
def run_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in bf16 under ZeRO-3."""
    return write_run(tmp_path_factory.mktemp("run"), "bf16", 3)


def computed(glus: GLUS) -> dict[str, torch.Tensor]:
    """What `write_checkpoint` computed with the adapters in place."""
    step, samples = TrainingForward(glus.model), [tiny_sample(glus)]
    with torch.no_grad():
        hidden, _ = step.read_segs(samples)
        return {"logits": glus.model.language.lm_head(hidden), "low_res": step(samples).low_res[0]}


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest, as a share of the largest value."""
    return float((one.float() - other.float()).abs().max() / other.float().abs().max())


def test_merged_model_equals_the_adapter_model(run: Path, tmp_path: Path) -> None:
    """fp32, to rounding: 1e-5 of the largest logit; the adapters themselves matter a thousand times more."""
    assert export_checkpoint(run, tmp_path / "out").name == "step-00000004"
    merged = GLUS.from_pretrained(tmp_path / "out", dtype="fp32", device="cpu")
    true = torch.load(run / "computed.pt", weights_only=True)
    found = computed(merged)
    assert all(difference(found[key], true[key]) < 1e-5 for key in true)
    start = computed(tiny_glus(tiny_config(memory_dropout=0.0)))
    assert all(difference(start[key], true[key]) > 1e-2 for key in true)
    report = merged.self_check()
    assert report.worst <= report.tolerance


def test_bf16(run_bf16: Path, tmp_path: Path) -> None:
    export_checkpoint(run_bf16, tmp_path / "out")
    assert {v.dtype for v in read_folder(tmp_path / "out").values()} == {torch.bfloat16}
    merged = GLUS.from_pretrained(tmp_path / "out", dtype="bf16", device="cpu")
    true = torch.load(run_bf16 / "computed.pt", weights_only=True)
    # The masks of random weights hang on the stability threshold, which rounding crosses.
    assert difference(computed(merged)["logits"], true["logits"]) < 0.03
    export_checkpoint(run_bf16, tmp_path / "fine", dtype="fp32")
    fine = read_folder(tmp_path / "fine")
    assert {v.dtype for v in fine.values()} == {torch.float32}
    # Trained weights come from the optimizer's fp32 copies, frozen ones as they were.
    trained, frozen = fine["seg_head.0.weight"], fine["sam.memory_encoder.out_proj.weight"]
    assert not torch.equal(trained.bfloat16().float(), trained)
    assert torch.equal(frozen.bfloat16().float(), frozen)


def masks_of(glus: GLUS) -> np.ndarray:
    return glus.segment(tiny_clip(), EXPRESSIONS).masks.numpy()


def test_export_load_same_masks(run: Path, tmp_path: Path) -> None:
    """Of the best checkpoint, in both layouts, through the command."""
    status = glus_command(["merge", "--weight", str(run), "--save_path", str(tmp_path / "own"), "--best"])
    assert status == 0
    own = GLUS.from_pretrained(tmp_path / "own", dtype="fp32", device="cpu")
    assert json.loads((tmp_path / "own" / "training.json").read_text())["step"] == 3
    out = ["--weight", str(run / "checkpoints" / "step-00000003"), "--save_path", str(tmp_path / "released")]
    assert glus_command(["merge", *out, "--layout", "released"]) == 0
    sam2 = own.model.config.sam2
    released = GLUS.from_pretrained(tmp_path / "released", dtype="fp32", device="cpu", sam2=sam2)
    masks = masks_of(own)
    assert 0 < masks.mean() < 1
    assert np.array_equal(masks, masks_of(released))
    assert not np.array_equal(masks, masks_of(tiny_glus(tiny_config())))
    assert np.array_equal(masks, masks_of(GLUS.from_pretrained(tmp_path / "own", dtype="fp32", device="cpu")))


def test_released_layout(run_bf16: Path, tmp_path: Path) -> None:
    """Files, fields, keys and dtypes of a published folder."""
    out = tmp_path / "out"
    export_checkpoint(run_bf16, out, layout="released")
    assert files_of(out) == {
        *("config.json", "generation_config.json", "pytorch_model.bin", "training.json"),
        *("tokenizer.model", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"),
        *("vision_tower/config.json", "vision_tower/model.safetensors"),
    }
    config = json.loads((out / "config.json").read_text())
    assert len(config) == 41
    assert (config["architectures"], config["model_type"]) == (["GLUSForCausalLM"], "llava")
    tensors = torch.load(out / "pytorch_model.bin", weights_only=True)
    for key, value in tensors.items():
        exact = key.startswith(("model.visual_model.", "model.text_hidden_fcs.")) or "inv_freq" in key
        assert value.dtype == (torch.float32 if exact else torch.bfloat16), key
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), key
    assert not any("lora" in key or "vision_tower" in key for key in tensors)
    tokenizer = json.loads((out / "tokenizer_config.json").read_text())
    assert (tokenizer["tokenizer_class"], tokenizer["legacy"], tokenizer["padding_side"]) == (
        "LlamaTokenizer",
        True,
        "right",
    )


def test_an_export_is_replaced_but_nothing_else_is(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_checkpoint(run, out, which="best")
    export_checkpoint(run, out)
    assert json.loads((out / "training.json").read_text())["step"] == 4
    before = files_of(out)
    with pytest.raises(InputError, match="no checkpoint"):
        export_checkpoint(tmp_path / "nothing", out)
    assert files_of(out) == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="mine is not empty and no earlier export"):
        export_checkpoint(run, mine)
    with pytest.raises(InputError, match="is a file"):
        export_checkpoint(run, mine / "thesis.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]  # nothing temporary stays


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run to damage."""
    return Path(shutil.copytree(run, tmp_path / "run"))


LAST = "checkpoints/step-00000004"


def unfinished(run: Path) -> None:
    (run / LAST / COMPLETE).unlink()


def cut(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        path = run / LAST / name
        path.write_bytes(path.read_bytes()[:-1000])

    return damage


def swap(name: str) -> Callable[[Path], None]:
    """A file of the other checkpoint."""

    def damage(run: Path) -> None:
        shutil.copy(run / "checkpoints/step-00000003" / name, run / LAST / name)

    return damage


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change `trainer.json`, and the list of files with it."""

    def damage(run: Path) -> None:
        path = run / LAST / "trainer.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        forget(run, "trainer.json")

    return damage


def forget(run: Path, *names: str) -> None:
    """Take files off the marker's list, as if they had never been checked."""
    path = run / LAST / COMPLETE
    listed = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in listed.items() if k not in names}))


def unlisted_swap(run: Path) -> None:
    name = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    swap(name)(run)
    forget(run, name)


def no_tokenizer(run: Path) -> None:
    shutil.rmtree(run / "tokenizer")


def narrower(content: dict[str, Any]) -> None:
    content["about"]["model"]["language"]["intermediate_size"] = 40


OPTIM = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unfinished, "step-00000004 cannot be exported: it is not complete"),
        (cut(OPTIM), rf"{OPTIM} is damaged"),
        (cut("mp_rank_00_model_states.pt"), r"mp_rank_00_model_states\.pt is damaged"),
        (swap(OPTIM), rf"{OPTIM} is damaged"),
        (swap("trainer.json"), r"trainer\.json is damaged"),
        (unlisted_swap, r"differs between mp_rank_00_model_states\.pt and zero_pp_rank_0"),
        (no_tokenizer, "tokenizer is missing"),
        (edit(lambda content: content.update(step=7)), "shards are of step 4, trainer.json says 7"),
        (edit(lambda content: content.update(world_size=2)), "shards are of world_size 1, trainer.json says 2"),
        (edit(lambda content: content.pop("about")), r"trainer\.json: file has no field 'about'"),
        (edit(lambda content: content.update(format=9)), r"trainer\.json: written by another version"),
        (edit(narrower), r"step-00000004 does not fit the model: .*gate_proj\.weight has shape"),
    ],
)
def test_bad_checkpoints(copy: Path, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    with pytest.raises(InputError, match=message):
        export_checkpoint(copy / LAST, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_falls_back_to_its_newest_complete_checkpoint(copy: Path, tmp_path: Path) -> None:
    unfinished(copy)
    assert export_checkpoint(copy, tmp_path / "out").name == "step-00000003"
    (copy / "checkpoints/step-00000003" / COMPLETE).unlink()
    with pytest.raises(InputError, match="holds 2 checkpoints, none of them complete"):
        export_checkpoint(copy, tmp_path / "out")


def test_command_faults(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "glus",
        "merge",
        "--weight",
        str(tmp_path),
        "--save_path",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds no checkpoint" in done.stderr
    with pytest.raises(InputError, match="unknown dtype"):
        export_checkpoint(run, tmp_path / "out", dtype="fp8")
    with pytest.raises(InputError, match="layout must be ours or released"):
        export_checkpoint(run, tmp_path / "out", layout="theirs")  # type: ignore[arg-type]
