"""Whole directories: the recorded merge written and read again, layouts of 7B (conformance kfs/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kfs_golden import add_golden_lora, golden_selector, golden_tensors, load
from tiny import clip_config, clip_state, same_weights

from glus.errors import InputError
from glus.modeling.checkpoints import State, check_fit
from glus.text.tokenizer import GlusTokenizer
from glus.training.parameters import merged_state
from kfs.checkpoints import load_selector
from kfs.exporting import write_merged
from kfs.model import CHAT_UNIVI, RELEASED, SelectorConfig, SelectorModel

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def merged(kfs_root: Path) -> State:
    """Under our names, adapters folded in."""
    model = golden_selector(kfs_root)
    add_golden_lora(model, kfs_root)
    return merged_state(model)


@pytest.fixture(scope="module")
def clip(kfs_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP apart, as the hub publishes it."""
    folder = tmp_path_factory.mktemp("clip")
    model = golden_selector(kfs_root)
    torch.save(clip_state(model), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(clip_config(model)))
    return folder


def config_of(kfs_root: Path) -> SelectorConfig:
    return golden_selector(kfs_root).config


def test_merged_directory(
    kfs_root: Path, kfs_tokenizer: GlusTokenizer, merged: State, clip: Path, tmp_path: Path
) -> None:
    """Files, settings and keys as recorded, but for what is wrong there (defect 17); and it loads."""
    spec, arrays = load(kfs_root, "merge")
    write_merged(tmp_path, config_of(kfs_root), merged, kfs_tokenizer, torch.float32)
    assert sorted(path.name for path in tmp_path.iterdir()) == spec["files"]
    tensors = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert {key: list(value.shape) for key, value in tensors.items()} == spec["keys"]
    for key in (key for key in arrays if key in tensors):
        np.testing.assert_allclose(tensors[key], arrays[key], rtol=0, atol=1e-6, err_msg=key)
    ours = json.loads((tmp_path / "config.json").read_text())
    wanted = spec["config"] | {"mm_use_im_start_end": False}
    free = {"_name_or_path", "mm_vision_tower", "vision_tower"}
    assert ours.keys() == wanted.keys()
    assert {k: v for k, v in ours.items() if k not in free} == {k: v for k, v in wanted.items() if k not in free}
    for file in ("tokenizer_config", "added_tokens", "special_tokens_map"):
        assert json.loads((tmp_path / f"{file}.json").read_text()) == spec[file]
    loaded = load_selector(tmp_path, vision=clip)
    own = SelectorModel(config_of(kfs_root), kfs_tokenizer.added_id("[SCORE]"))
    own.load_state_dict(merged)
    assert same_weights(loaded.model, own)
    assert loaded.config == config_of(kfs_root)
    assert loaded.tokenizer.legacy is spec["tokenizer_config"]["legacy"]


def test_bf16_rounds_once(kfs_root: Path, kfs_tokenizer: GlusTokenizer, merged: State, tmp_path: Path) -> None:
    """Defect 31: the original merges in bf16 and rounds twice; dtypes as it stores them."""
    spec, arrays = load(kfs_root, "merge")
    write_merged(tmp_path, config_of(kfs_root), merged, kfs_tokenizer, torch.bfloat16)
    tensors = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    found = {f"{key.rsplit('.', 1)[-1]}:{value.dtype}" for key, value in tensors.items()}
    assert sorted(found) == sorted(spec["dtypes_bf16_run"])
    compared = [key for key in arrays if key.startswith("bf16.")]
    assert compared
    for key in compared:
        exact = torch.from_numpy(arrays[key.removeprefix("bf16.")])
        ours = tensors[key.removeprefix("bf16.")].float()
        assert torch.equal(ours, exact.bfloat16().float())
        assert (ours - exact).abs().mean() < np.abs(arrays[key] - exact.numpy()).mean()
        assert np.abs(ours.numpy() - arrays[key]).max() < 0.01


def write_start(folder: Path, kfs_root: Path, kfs_tokenizer: GlusTokenizer) -> Path:
    """The initial model as recorded: weights without those that training adds."""
    spec = json.loads((kfs_root / "tiny_model.json").read_text())
    folder.mkdir()
    state = golden_tensors(kfs_root, {k: v for k, v in spec["shapes"].items() if "text_hidden_fcs" not in k})
    state = {k: v for k, v in state.items() if "vision_tower" not in k}
    words = spec["chatunivi_config"]["vocab_size"]
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        state[key] = state[key][:words].clone()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(spec["chatunivi_config"]))
    kfs_tokenizer.save(folder)
    (folder / "added_tokens.json").unlink()
    return folder


def test_initial_directory(kfs_root: Path, kfs_tokenizer: GlusTokenizer, clip: Path, tmp_path: Path) -> None:
    spec = json.loads((kfs_root / "tiny_model.json").read_text())
    folder = write_start(tmp_path / "start", kfs_root, kfs_tokenizer)
    loaded = load_selector(folder, vision=clip)
    assert loaded.model.score_id == spec["score_token_id"]
    assert loaded.tokenizer.added_tokens == kfs_tokenizer.added_tokens
    own, wanted = loaded.model.state_dict(), golden_selector(kfs_root).state_dict()
    for key, value in own.items():
        if not key.startswith("score_head."):
            assert torch.equal(value[:32000], wanted[key][:32000]), key
    (folder / "config.json").write_text(json.dumps({**spec["chatunivi_config"], "vocab_size": 31999}))
    with pytest.raises(InputError, match="vocab_size 31999"):
        load_selector(folder, vision=clip)


@pytest.mark.parametrize("name", ["chatunivi_7b", "kfs_7b_hf"])
def test_7b_is_strict_both_ways(kfs_root: Path, name: str) -> None:
    """The recorded directory fits the model of its sizes; without a key, with one more or another shape not."""
    recorded: dict[str, list[int]] = json.loads((kfs_root / f"manifest_{name}.json").read_text())
    merged = name == "kfs_7b_hf"
    words = recorded["lm_head.weight"][0]
    model_config = SelectorConfig()
    table = RELEASED if merged else CHAT_UNIVI
    with torch.device("meta"):
        model = SelectorModel(model_config, score_id=words)
        state = table.rename({key: torch.empty(shape) for key, shape in recorded.items()}, name)
    drawn = () if merged else ("score_head.",)
    wanted = {
        k: tuple(v.shape) for k, v in model.state_dict().items() if not k.startswith(("vision.tower.", *drawn))
    }
    if not merged:
        for key in ("language.decoder.embed_tokens.weight", "language.lm_head.weight"):
            wanted[key] = (words, model_config.language.hidden_size)
    check_fit(wanted, state, name)
    for key in (
        "language.lm_head.weight",
        "vision.projector.bias",
        "language.decoder.layers.31.mlp.up_proj.weight",
    ):
        with pytest.raises(InputError, match=f"1 missing: {key}"):
            check_fit(wanted, {k: v for k, v in state.items() if k != key}, name)
        with pytest.raises(InputError, match=f"{key} has shape"):
            check_fit(wanted, {**state, key: torch.empty(3, device="meta")}, name)
    with pytest.raises(InputError, match=r"model\.odd not part of the"):
        table.rename({"model.odd": 0, **dict.fromkeys(recorded, 0)}, name)
