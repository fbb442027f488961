"""Selectors that must load: ours, Chat-UniVi's, merged ones; and what is refused, by the key's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import clip_state, same_weights
from tiny_selector import (
    foreign_fields,
    foreign_state,
    tiny_score_tokenizer,
    tiny_selector,
    tiny_selector_config,
    write_selector_clip,
)

from glus.errors import InputError
from glus.modeling.checkpoints import State
from kfs.checkpoints import Selector, foreign_config, fresh_selector, load_selector, save_selector
from kfs.merging import MergingConfig
from kfs.model import CHAT_UNIVI, SelectorModel
from kfs.prompts import conversation

WORDS = ("language.decoder.embed_tokens.weight", "language.lm_head.weight")


@pytest.fixture(scope="module")
def selector() -> Selector:
    return tiny_selector()


@pytest.fixture(scope="module")
def clip(selector: Selector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_selector_clip(tmp_path_factory.mktemp("clips") / "clip", selector)


def write_foreign(
    folder: Path,
    selector: Selector,
    merged: bool,
    fields: dict[str, Any] | None = None,
    change: Callable[[State], Any] = lambda state: None,
) -> Path:
    """In two shards; Chat-UniVi's folder has no `added_tokens.json`."""
    folder.mkdir(parents=True)
    state = foreign_state(selector, merged)
    change(state)
    parts = [dict(list(state.items())[n::2]) for n in range(2)]
    where = {key: f"part-{n}.bin" for n, part in enumerate(parts) for key in part}
    for n, part in enumerate(parts):
        torch.save(part, folder / f"part-{n}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps({**foreign_fields(selector, merged), **(fields or {})}))
    selector.tokenizer.save(folder)
    if not merged:
        (folder / "added_tokens.json").unlink()
    return folder


def scores(selector: Selector) -> torch.Tensor:
    pixels = torch.linspace(-1, 1, 3 * 3 * 56 * 56).reshape(3, 3, 56, 56).sin()
    row = selector.tokenizer.encode_with_images(conversation("a blue circle", 2))
    with torch.no_grad():
        return selector.model.score([row], selector.model.encode_clip(pixels))


@pytest.mark.parametrize("legacy", [False, True])
def test_own_format_round_trips_bit_by_bit(tmp_path: Path, legacy: bool) -> None:
    selector = tiny_selector(legacy=legacy)
    save_selector(selector, tmp_path / "one")
    loaded = load_selector(tmp_path / "one")
    assert same_weights(loaded.model, selector.model)
    assert loaded.config == selector.config
    assert not loaded.model.training
    assert loaded.tokenizer.legacy is legacy
    text = conversation("a blue circle", 2)
    assert loaded.tokenizer.encode(text) == selector.tokenizer.encode(text)
    # Weights mapped from a file lie unaligned, which changes the order of additions but no more.
    assert torch.allclose(scores(loaded), scores(selector), rtol=0, atol=1e-5)
    save_selector(loaded, tmp_path / "two")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.model", "added_tokens.json"} <= names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_merged_folder(selector: Selector, clip: Path, tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "kfs", selector, merged=True)
    loaded = load_selector(folder, vision=clip)
    assert same_weights(loaded.model, selector.model)
    assert loaded.config == selector.config
    assert torch.allclose(scores(loaded), scores(selector), rtol=0, atol=1e-5)
    assert loaded.model.language.decoder.rotary_emb.inv_freq.max() == 1  # not the rounded copy of the file


def test_a_merged_folder_may_hold_clip(selector: Selector, clip: Path, tmp_path: Path) -> None:
    tower = {f"model.vision_tower.vision_tower.{k}": v for k, v in clip_state(selector.model).items()}
    tower = {k: v for k, v in tower.items() if ".vision_model." in k and "position_ids" not in k}
    folder = write_foreign(tmp_path / "kfs", selector, merged=True, change=lambda state: state.update(tower))
    assert same_weights(load_selector(folder, vision=clip).model, selector.model)


def test_bf16_leaves_the_head_alone(selector: Selector, clip: Path, tmp_path: Path) -> None:
    """Defect 20: a head in bf16 makes exact ties of scores common."""
    folder = write_foreign(tmp_path / "kfs", selector, merged=True)
    model = load_selector(folder, vision=clip, dtype=torch.bfloat16).model
    head = {v.dtype for k, v in model.state_dict().items() if k.startswith("score_head.")}
    rest = {v.dtype for k, v in model.state_dict().items() if not k.startswith("score_head.")}
    assert (head, rest) == ({torch.float32}, {torch.bfloat16})
    assert torch.equal(model.score_head[0].weight, selector.model.score_head[0].weight)


def test_chat_univi(selector: Selector, clip: Path, tmp_path: Path) -> None:
    """What is there is taken, `[SCORE]` and the head are drawn, the same each time."""
    fields = {"num_key_value_heads": selector.config.language.num_heads, "vision_tower": "not looked at"}
    strange = {"model.vision_tower.whatever.weight": torch.ones(2)}  # some of its checkpoints hold a tower (3.1)
    folder = write_foreign(tmp_path / "univi", selector, False, fields, lambda state: state.update(strange))
    loaded, again = (load_selector(folder, vision=clip) for _ in range(2))
    assert same_weights(loaded.model, again.model)
    own, wanted = loaded.model.state_dict(), selector.model.state_dict()
    for key, value in own.items():
        if key in WORDS:
            assert torch.equal(value[:-1], wanted[key][:-1])
            assert 0.01 < float(value[-1].std()) < 0.03
        elif not key.startswith("score_head."):
            assert torch.equal(value, wanted[key]), key
    drawn = own["score_head.0.weight"]
    assert 0 < float(drawn.std()) < 0.2
    assert not torch.equal(drawn, wanted["score_head.0.weight"])
    assert loaded.config == replace(selector.config, out_dim=256)
    assert loaded.tokenizer.added_tokens == {"[SCORE]": len(loaded.tokenizer) - 1}
    assert loaded.model.score_id == len(loaded.tokenizer) - 1


def test_a_folder_trained_further_keeps_its_head(selector: Selector, clip: Path, tmp_path: Path) -> None:
    """The flag counts, not the name of the architecture (3.1)."""
    fields = {"architectures": ["ChatUniViLlamaForCausalLM"]}
    folder = write_foreign(tmp_path / "kfs", selector, True, fields)
    assert same_weights(load_selector(folder, vision=clip).model, selector.model)


def test_drawing_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    config, tokenizer = tiny_selector_config(), tiny_score_tokenizer()
    one, same, other = (fresh_selector(config, tokenizer, seed) for seed in (0, 0, 1))
    assert same_weights(one.model, same.model)
    assert not same_weights(one.model, other.model)
    assert torch.equal(before, torch.get_rng_state())


def test_13b_is_the_same_layout(selector: Selector, clip: Path) -> None:
    """Chat-UniVi-13B has other sizes and no other names: its config decides."""
    sizes = {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 13824}
    raw = {**foreign_fields(selector, merged=True), **sizes, "num_key_value_heads": 40, "vocab_size": 32001}
    config = foreign_config(raw, Path("config.json"), clip, merged=True)
    with torch.device("meta"):
        model = SelectorModel(config, score_id=32000)
    named = [key for key in model.state_dict() if not key.startswith(("vision.tower.", "score_head."))]
    shapes = {CHAT_UNIVI.to_foreign(key): tuple(model.state_dict()[key].shape) for key in named}
    assert len(shapes) == 40 * 9 + 5
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (32001, 5120)
    assert shapes["model.layers.39.mlp.down_proj.weight"] == (5120, 13824)
    assert shapes["model.layers.39.self_attn.k_proj.weight"] == (5120, 5120)
    assert shapes["model.mm_projector.weight"] == (5120, selector.config.vision.hidden_size)


HEAD = "model.text_hidden_fcs.0.4.bias"
FAULTS: dict[str, tuple[bool, dict[str, Any], Callable[[State], Any], str]] = {
    "missing": (True, {}, lambda s: s.pop(HEAD), r"1 missing: score_head\.4\.bias"),
    "missing in Chat-UniVi": (
        False,
        {},
        lambda s: s.pop("lm_head.weight"),
        r"1 missing: language\.lm_head\.weight",
    ),
    "surplus": (True, {}, lambda s: s.update(odd=torch.ones(1)), "odd not part of the KFS layout"),
    "surplus in Chat-UniVi": (
        False,
        {},
        lambda s: s.update({HEAD: torch.ones(1)}),
        f"{HEAD} not part of",
    ),
    "misshaped": (True, {}, lambda s: s.update({HEAD: torch.ones(2)}), r"score_head\.4\.bias has shape \(2,\)"),
    "misshaped words": (
        False,
        {},
        lambda s: s.update({"lm_head.weight": torch.ones(3, 32)}),
        r"lm_head\.weight has shape \(3, 32\)",
    ),
    "no head where one is said to be": (
        True,
        {},
        lambda s: [s.pop(k) for k in [*s] if "text_hidden" in k],
        "6 missing: score_head",
    ),
    "another vocabulary": (True, {"vocab_size": 99}, lambda s: None, "the tokenizer has .* vocab_size 99"),
    "no merging": (True, {"config": {"use_cluster": False}}, lambda s: None, "use_cluster False is not supported"),
    "another model": (True, {"architectures": ["Llama"]}, lambda s: None, "architectures .* is not one of"),
    "grouped heads": (True, {"num_key_value_heads": 1}, lambda s: None, "num_key_value_heads"),
    "no sizes": (True, {"hidden_size": "32"}, lambda s: None, "hidden_size must be int"),
    "no width": (True, {"out_dim": None}, lambda s: None, "out_dim must be int"),
    "other tower": (True, {"mm_hidden_size": 7}, lambda s: None, "mm_hidden_size differs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused(selector: Selector, clip: Path, tmp_path: Path, fault: str) -> None:
    merged, fields, change, message = FAULTS[fault]
    folder = write_foreign(tmp_path / "kfs", selector, merged, fields, change)
    with pytest.raises(InputError, match=message):
        load_selector(folder, vision=clip)


@pytest.mark.parametrize("key", ["score_head.4.bias", "vision.tower.pre_layrnorm.weight"])
@pytest.mark.parametrize(
    ("fault", "message"), [("missing", "1 missing: {}"), ("surplus", "1 surplus: a"), ("shape", "{} has shape")]
)
def test_ours_refused(selector: Selector, tmp_path: Path, key: str, fault: str, message: str) -> None:
    save_selector(selector, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    if fault == "missing":
        del state[key]
    else:
        state["a" if fault == "surplus" else key] = torch.ones(3, 3)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message.format(key)):
        load_selector(tmp_path)


def test_other_folders_are_refused(selector: Selector, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint folder"):
        load_selector(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"pass vision_tower=FOLDER"):
        load_selector(write_foreign(tmp_path / "kfs", selector, merged=True))
    save_selector(selector, tmp_path / "own")
    with pytest.raises(InputError, match="complete; do not pass vision"):
        load_selector(tmp_path / "own", vision=clip)
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    (tmp_path / "own" / "config.json").write_text(json.dumps({**config, "format": "glus"}))
    with pytest.raises(InputError, match="is a glus model, no key-frame selector"):
        load_selector(tmp_path / "own")
    (tmp_path / "own" / "config.json").write_text(json.dumps({**config, "format_version": 9}))
    with pytest.raises(InputError, match="format_version 9 is unknown"):
        load_selector(tmp_path / "own")
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    (tmp_path / "own" / "added_tokens.json").write_text("{}")
    with pytest.raises(InputError, match=r"lacks the tokens \[SCORE\]"):
        load_selector(tmp_path / "own")


def test_tokens_of_other_prompts_are_refused(selector: Selector, clip: Path, tmp_path: Path) -> None:
    """Defect 17: the stored flag says start and end tokens are in use; only the tokenizer tells."""
    folder = write_foreign(tmp_path / "kfs", selector, merged=True)
    selector.tokenizer.adding("<im_start>").save(folder)
    with pytest.raises(InputError, match="<im_start> was trained with other prompts"):
        load_selector(folder, vision=clip)


def test_merging_that_cannot_be(selector: Selector) -> None:
    with pytest.raises(InputError, match="asks for more tokens than the 16"):
        replace(selector.config, merging=MergingConfig((17, 4, 2)))
    with pytest.raises(InputError, match="3 spatial counts"):
        MergingConfig((8, 4))
