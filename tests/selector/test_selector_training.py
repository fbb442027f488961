"""The selector on the shared loop: shares, learns, resumes, validates, exports (reference kfs.md, 6, 8, 9.3)."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from selector_data import write_set
from tiny import tiny_config, tiny_glus
from tiny_selector import tiny_score_tokenizer, tiny_selector, tiny_selector_config, write_selector_clip
from training_trees import write_tree

from glus.__main__ import main as glus_command
from glus.errors import InputError
from glus.training.launch import Place
from glus.training.parameters import LoraSettings, add_lora
from kfs import train_command
from kfs.__main__ import COMMANDS
from kfs.checkpoints import Selector, load_selector, save_selector
from kfs.merging import MergingConfig
from kfs.recipe import SelectorTrainConfig, export_selector, selector_train_config, starting_selector
from kfs.samples import SelectorData, SelectorSample, SelectorSet, open_source
from kfs.train_command import DEAD, overrides, parser
from kfs.training import SelectorTraining, select_trainable, selector_losses
from kfs.validation import SelectorValidator, held_out

pytest.importorskip("deepspeed")
pytest.importorskip("peft")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    write_set(root, "train", range(12), 8)
    write_set(root, "valid_u", range(20, 23), 8)
    return root


@pytest.fixture
def content(tree: Path, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Configuration of a short run of a new tiny selector."""
    monkeypatch.setattr("glus.training.launch.join", lambda: place)
    tiny_score_tokenizer().save(tmp_path / "tokenizer")
    sizes = dataclasses.asdict(tiny_selector_config())
    del sizes["language"]["vocab_size"]
    (tmp_path / "sizes.yaml").write_text(yaml.safe_dump(_lists(sizes)))
    return {
        "model": {"sizes": str(tmp_path / "sizes.yaml"), "tokenizer": str(tmp_path / "tokenizer")},
        "data": {
            "dataset_dir": str(tree),
            "rvos_seg_data": "mevis_train",
            "iou_path": str(tree / "ious_train"),
            "frame_range": [3, 4],
        },
        "lora": {"r": 2, "dropout": 0.3},
        "gradient_checkpointing": False,
        "loop": {
            "steps": 4,
            "batch_size": 2,
            "grad_accumulation_steps": 1,
            "workers": 0,
            "precision": "fp32",
            "optimizer": {"lr": 0.003, "warmup_steps": 2},
            "deepspeed": {"stage": 0},
            "checkpoints": {"every": 2, "keep": 2},
            "logging": {"tensorboard": False, "progress": False},
        },
        "validation": {"dataset": "mevis_val", "iou_path": str(tree / "ious_valid_u")},
    }


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def options(content: dict[str, Any], tmp_path: Path) -> list[str]:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    return ["--config", str(tmp_path / "run.yaml"), "--log_dir", str(tmp_path / "run")]


def samples(tree: Path, count: int) -> list[SelectorSample]:
    data = SelectorData(str(tree), "mevis_train", iou_path=str(tree / "ious_train"), frame_range=(3, 5))
    source = SelectorSet(open_source(data), tiny_score_tokenizer(), tiny_selector_config(), 0)
    return [source[number] for number in range(count)]


def gradients(module: SelectorTraining) -> dict[str, torch.Tensor]:
    found = {name: value.grad for name, value in module.model.named_parameters() if value.grad is not None}
    module.zero_grad()
    return found


def test_nothing_is_computed_twice_and_the_losses_are_those_of_whole_conversations(tree: Path) -> None:
    """Kfs.md 9.3: frames pass CLIP once, what conversations share passes the language model once."""
    batch = samples(tree, 3)
    model = tiny_selector().model
    add_lora(model, LoraSettings(dropout=0.0))
    select_trainable(model)
    module = SelectorTraining(model, 0.5, 2.0)
    frames, positions = [], []
    model.vision.register_forward_pre_hook(lambda _, args: frames.append(len(args[0])))
    model.language.decoder.layers[0].register_forward_pre_hook(
        lambda _, args: positions.append(args[0][..., 0].numel())
    )
    losses = module(batch)
    losses.loss.backward()
    ours = gradients(module)
    assert frames == [sum(len(sample.pixels) for sample in batch)]
    shared = sum(positions)

    rows = [row for sample in batch for row in sample.rows]
    labels = [row for sample in batch for row in sample.labels]
    shown = [model.encode_clip(sample.pixels)[list(sample.images)] for sample in batch for _ in sample.rows]
    positions.clear()
    whole = selector_losses(model, rows, labels, torch.cat(shown), [s.targets for s in batch], 0.5, 2.0)
    whole.loss.backward()
    assert shared < 0.75 * sum(positions), "two conversations a sample; most of their text is their own"
    for name in ("total", "ce", "iou", "scores"):
        torch.testing.assert_close(getattr(losses, name), getattr(whole, name), rtol=1e-5, atol=1e-5)
    theirs = gradients(module)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5, msg=name)

    model.language.decoder.activation_checkpointing_enable({"use_reentrant": False})
    module.train()
    torch.testing.assert_close(module(batch).loss, whole.loss, rtol=1e-5, atol=1e-5)


def test_what_learns() -> None:
    model = tiny_selector().model
    select_trainable(model)
    trained = {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"score_head", "language"}
    select_trainable(model, "all")
    assert all(value.requires_grad for value in model.parameters())


def test_it_learns_and_the_best_stays(content: dict[str, Any], tmp_path: Path, tree: Path, place: Place) -> None:
    """From nothing: the IoU is the frame's brightness. Validation is on other videos, by the scoring engine."""
    content |= {"trainable": "all", "lora": {"r": 0}, "weights": {"ce": 0.1}}
    content["loop"] |= {
        "steps": 30,
        "batch_size": 4,
        "validate_every": 10,
        "checkpoints": {"every": 30, "keep": 1},
    }
    assert COMMANDS.run(["train", *options(content, tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    found = {line["step"]: line for line in lines if line["kind"] == "validation"}
    assert found.keys() == {10, 20, 30}
    assert found[30]["rank_correlation"] > 0.8
    assert found[30]["chosen"] > found[30]["first"] + 0.1
    best = json.loads((tmp_path / "run/checkpoints/best.json").read_text())
    assert best["score"] == max(line["chosen"] for line in found.values())
    assert (tmp_path / f"run/checkpoints/step-{best['step']:08d}/complete").is_file()
    assert [line["iou"] for line in lines if "iou" in line][-1] < 0.2
    selector = load_selector(tmp_path / "run/model")
    again = SelectorValidator(held_out("mevis_val", tree, tree / "ious_valid_u", 64), selector.tokenizer)
    for name, value in again(selector.model, place).scalars.items():
        assert found[30][name] == pytest.approx(value, abs=1e-6), "what is logged is what the exported one does"


def test_the_released_recipe_runs_in_bf16_on_both_sets(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 under ZeRO-2 with gradient checkpointing, in a folder with a relative name; both sets are drawn."""
    data = tmp_path / "data"
    write_set(data, "train", range(2), 6)
    write_tree(data, "refyoutube_vos")
    for exp_id in ("0", "1"):
        path = data / f"ious_refytvos/even/{exp_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([0.5] * 8))
    content["data"] = {
        "dataset_dir": "data",
        "rvos_sample_ratio": "1||1",
        "iou_path": "data/ious_train||data/ious_refytvos",
    }
    content |= {"compat": "released", "gradient_checkpointing": True, "validation": {}}
    content["loop"] |= {"precision": "bf16", "deepspeed": {"stage": 2}, "steps": 2}
    options(content, tmp_path)
    monkeypatch.chdir(tmp_path)
    drawn = []
    plain = SelectorSet.__getitem__
    monkeypatch.setattr(
        SelectorSet, "__getitem__", lambda self, number: drawn.append(found := plain(self, number)) or found
    )
    assert train_command.main(["--config", "run.yaml", "--log_dir", "runs/bf16"]) == 0
    assert {sample.dataset for sample in drawn} == {"mevis_train", "refytvos_train"}
    assert {len(sample.pixels) for sample in drawn} == {6, 8}, "videos shorter than the range give all frames"
    state = load_selector("runs/bf16/model", dtype=torch.bfloat16).model.state_dict()
    assert state["language.lm_head.weight"].dtype == torch.bfloat16
    assert state["score_head.0.weight"].dtype == torch.float32


def test_a_run_that_was_stopped_ends_bit_equal(content: dict[str, Any], tmp_path: Path) -> None:
    """Stopped by its time limit after every step, LoRA's dropout on; a kill: tests/training/test_resume.py."""
    assert train_command.main([*options(content, tmp_path), "--workers", "1"]) == 0
    whole = (tmp_path / "run").rename(tmp_path / "whole")
    for _ in range(content["loop"]["steps"]):
        assert not (tmp_path / "run/model").exists()
        assert train_command.main([*options(content, tmp_path), "--max_minutes", "1e-9"]) == 0
    one, other = (folder / "model/model.safetensors" for folder in (whole, tmp_path / "run"))
    assert one.read_bytes() == other.read_bytes()
    with pytest.raises(InputError, match=r"data\.frame_range \[3, 5\] instead of \[3, 4\]"):
        train_command.main([*options(content, tmp_path), "--univi_sample_frame_range", "3,5"])


def test_a_run_ends_with_a_selector_one_can_load_and_train_on(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LoRA folded in, both layouts; and defect 32: trained on from there, the loss weights count."""
    argv = options(content, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert train_command.main([*argv, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert all(words in said for words in ("score head", "LoRA", "one step: ", "ce ", "iou "))
    assert train_command.main(argv) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'run/model'}\n")
    selector = load_selector(tmp_path / "run/model")
    saved = torch.load(tmp_path / "run/checkpoints/step-00000004/mp_rank_00_model_states.pt")["module"]
    name = "language.decoder.layers.0.self_attn.q_proj"
    base, down, up = (
        saved[f"module.model.{name}.{part}.weight"] for part in ("base_layer", "lora_A.default", "lora_B.default")
    )
    assert up.abs().max() > 0
    torch.testing.assert_close(selector.model.state_dict()[f"{name}.weight"], base + 8 * up @ down)
    merge = ["merge", "--weight", str(tmp_path / "run"), "--save_path", str(tmp_path / "merged")]
    assert COMMANDS.run([*merge, "--layout", "released"]) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "merged").glob("*.json")}
    assert glus_command([*merge, "--layout", "released"]) == 0  # the checkpoint says what it is of
    assert {path.name: path.read_bytes() for path in (tmp_path / "merged").glob("*.json")} == files
    clip = write_selector_clip(tmp_path / "clip", selector)
    merged = load_selector(tmp_path / "merged", vision=clip)
    assert all(torch.equal(v, selector.model.state_dict()[k]) for k, v in merged.model.state_dict().items())

    content["model"] = {"version": str(tmp_path / "run/model")}
    further = [*options(content, tmp_path)[:2], "--log_dir", str(tmp_path / "further"), "--iou_loss_weight", "0"]
    assert train_command.main([*further, "--steps", "1"]) == 0
    (line,) = (json.loads(text) for text in (tmp_path / "further/log.jsonl").read_text().splitlines())
    assert line["iou"] == 0
    assert line["loss"] == pytest.approx(line["ce"])


def test_a_loss_that_is_not_a_number_can_be_looked_at(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content["loop"]["optimizer"]["lr"] = 1e2
    content["loop"]["optimizer"]["grad_clip"] = 0
    monkeypatch.setattr("kfs.samples.clip_image", lambda *_: torch.full((3, 56, 56), torch.inf))
    argv = options(content, tmp_path)
    assert train_command.main(argv) == 1
    assert "the loss is nan" in capsys.readouterr().err
    assert (
        train_command.main([*argv, "--replay", str(tmp_path / "run/failure-step-00000001/batch-rank-0.pt")]) == 0
    )
    said = capsys.readouterr().out
    assert "mevis_train v_" in said
    assert "not finite from model.vision" in said


def test_a_selector_starts_with_what_a_glus_has_learned(tmp_path: Path) -> None:
    glus = tiny_glus(tiny_config(), clip_view="squash")
    glus.save_pretrained(tmp_path / "glus")
    content = {"from_glus": str(tmp_path / "glus"), "merging": {"spatial": [8, 4, 2]}, "out_dim": 8}
    start = selector_train_config({"model": content}, "test").model
    selector = starting_selector(start, 0)
    assert selector.config.clip_view == glus.config.behaviour.clip_view
    assert selector.config.merging == MergingConfig((8, 4, 2))
    ours, theirs = selector.model.state_dict(), glus.model.state_dict()
    assert {name.split(".")[0] for name in ours} == {"vision", "language", "score_head"}
    for name, value in ours.items():
        if not name.startswith("score_head."):
            assert torch.equal(value[: len(theirs[name])], theirs[name]), name
    score = selector.tokenizer.added_id("[SCORE]")
    assert score == len(glus.tokenizer) == len(ours["language.lm_head.weight"]) - 1
    save_selector(selector, tmp_path / "selector")
    again = load_selector(tmp_path / "selector")
    assert again.tokenizer.added_tokens == {**glus.tokenizer.added_tokens, "[SCORE]": score}
    assert isinstance(again, Selector)


def config_of(*argv: str, **content: Any) -> SelectorTrainConfig:
    from glus.training.config import merge

    return selector_train_config(
        merge({"model": {"version": "x"}, **content}, overrides(parser().parse_args(argv))), "x"
    )


def test_the_recipe_is_the_originals() -> None:
    """Kfs.md 6; `configs/kfs.yaml` says the same."""
    default, released = config_of(), config_of("--compat", "released")
    recipe = yaml.safe_load((ROOT / "configs/kfs.yaml").read_text())
    written = selector_train_config({**recipe, "model": {"version": "x"}}, "kfs.yaml")
    for config in (default, released, written):
        loop, data = config.loop, config.data
        assert (loop.steps, loop.batch_size, loop.grad_accumulation_steps) == (2000, 1, 16)
        assert (loop.precision, loop.deepspeed.stage, loop.deepspeed.bucket_size) == ("bf16", 2, 500_000_000)
        optimizer = loop.optimizer
        assert (optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (3e-4, 0.9, 0.95, 0)
        assert (optimizer.grad_clip, optimizer.warmup_steps, optimizer.decay) == (1.0, 100, "linear")
        assert (config.weights.ce, config.weights.iou, config.gradient_checkpointing) == (1, 1, True)
        assert config.lora == LoraSettings(8, 16, 0.05, ("q_proj", "v_proj"))
        assert (data.frame_range, data.num_classes_per_sample, data.balance_sample) == ((8, 12), 3, True)
        assert (data.rvos_seg_data, data.sample_policy) == ("mevis_train||refytvos_train", "uniform")
    assert written.data.rvos_sample_ratio == "4000||15000"
    assert (default.data.normalise_text, released.data.normalise_text) == (True, False)
    assert (default.loop.optimizer.first_step, released.loop.optimizer.first_step) == ("warmup", "full")


def test_options_of_the_original_reach_their_fields() -> None:
    """Defects 2 and 6: they exist."""
    config = config_of(
        *("--rvos_seg_data", "mevis_train", "--rvos_sample_ratio", "1", "--univi_sample_frame_range", "6,9"),
        *("--joint_path", "i", "--rvos_sample_policy", "random", "--no-balance_sample", "--epochs", "3"),
        *("--ce_loss_weight", "0.5", "--lora_target_modules", "q_proj", "--val_dataset", "mevis:mine"),
    )
    data = config.data
    assert (data.rvos_seg_data, data.rvos_sample_ratio, data.frame_range) == ("mevis_train", "1", (6, 9))
    assert (data.iou_path, data.sample_policy, data.balance_sample) == ("i", "random", False)
    assert (config.loop.steps, config.weights.ce, config.lora.targets) == (300, 0.5, ("q_proj",))
    assert config.validation.dataset == "mevis:mine"
    assert config_of("--rvos_num_frames_sample_range", "2,3").data.frame_range == (2, 3)
    for name in DEAD:
        with pytest.raises(InputError, match=f"--{name} is not an option here"):
            parser().parse_args([f"--{name}", "x"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--rvos_num_frames_sample_range", "8"], "needs two numbers as in 8,12"),
        (["--rvos_num_frames_sample_range", "9,8"], "the smaller first"),
        (["--zero_stage", "3"], "deepspeed.stage 0 to 2"),
        (["--set", "model.sizes=x"], r"give one of model\.version"),
        (["--set", "weights.ce=-1"], "loss weight ce"),
        (["--set", "nothing=1"], "unknown key 'nothing'"),
    ],
)
def test_bad_input_is_named(argv: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        config_of(*argv)


def test_an_option_replaces_where_a_file_starts(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no/where"):
        train_command.main([*options(content, tmp_path), "--from_glus", "no/where"])
    with pytest.raises(InputError, match="nothing to start from"):
        train_command.main([])
    with pytest.raises(InputError, match="holds no checkpoint"):
        export_selector(tmp_path / "nothing", tmp_path / "out")


def test_the_shipped_recipe_fits_the_shipped_glus(tree: Path) -> None:
    """Sizes, and a prompt of 12 images that stays short."""
    config = selector_train_config(yaml.safe_load((ROOT / "configs/kfs_tiny.yaml").read_text()), "kfs_tiny.yaml")
    start = dataclasses.replace(config.model, from_glus=str(ROOT / "checkpoints/glus-tiny"))
    selector = starting_selector(start, 0)
    weights = sum(value.numel() for value in selector.model.parameters())
    assert 4 * weights < 40e6
    data = SelectorData(str(tree), "mevis_train", iou_path=str(tree / "ious_train"), frame_range=(12, 12))
    sample = SelectorSet(open_source(data), selector.tokenizer, selector.config, 0)[0]
    assert len(sample.images) == 9  # all 8 frames of the video and the target
    longest = len(sample.rows[0]) + 13 * selector.config.merging.tokens_per_image
    assert longest < selector.config.language.max_positions


def test_help_answers_without_torch() -> None:
    code = (
        "import sys\nfrom kfs.train_command import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--univi_sample_frame_range" in done.stdout
