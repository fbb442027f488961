"""The trainable set, LoRA, and the weights with LoRA folded in (reference glus.md, 6.2 and 2.5)."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_glus
from training_samples import tiny_sample

from glus.api import GLUS
from glus.config import ModelConfig
from glus.errors import InputError
from glus.modeling.checkpoints import load_state
from glus.modeling.glus import GLUSModel
from glus.training.forward import TrainingForward
from glus.training.parameters import (
    LoraSettings,
    add_lora,
    fold_lora,
    merged_state,
    select_trainable,
    trainable_table,
    trainable_text,
)

pytest.importorskip("peft")

# Reference glus.md, 6.2.
RELEASED_COUNTS = {
    "LoRA": 4_194_304,
    "embed_tokens and lm_head": 262_176_768,
    "vision projector": 4_198_400,
    "[SEG] head": 17_830_144,
    "SAM-2 mask decoder": 4_215_109,
}


@pytest.fixture(scope="module")
def full_size() -> GLUSModel:
    """The 7B configuration with LoRA, without memory."""
    with torch.device("meta"):
        model = GLUSModel(ModelConfig(), seg_id=32003)
        add_lora(model, LoraSettings())
    select_trainable(model, "released")
    return model


def live_lora(model: GLUSModel, settings: LoraSettings | None = None) -> LoraSettings:
    """Adapters with something in both halves, as after some training."""
    settings = settings or LoraSettings(r=4, alpha=8, dropout=0.0)
    add_lora(model, settings)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return settings


@pytest.fixture
def glus() -> GLUS:
    return tiny_glus(tiny_config(memory_dropout=0.0))


def test_the_released_set_to_the_number(full_size: GLUSModel) -> None:
    assert dict(trainable_table(full_size)) == RELEASED_COUNTS
    assert sum(count for _, count in trainable_table(full_size)) == 292_614_725
    assert "292,614,725" in trainable_text(full_size)


def test_lora_touches_the_language_model_alone(full_size: GLUSModel) -> None:
    adapted = {name.split(".lora_")[0] for name, _ in full_size.named_parameters() if ".lora_" in name}
    layers = range(full_size.config.language.num_layers)
    wanted = {f"language.decoder.layers.{i}.self_attn.{kind}_proj" for i in layers for kind in "qv"}
    assert adapted == wanted
    # The names LoRA aims at exist elsewhere, too.
    elsewhere = [name for name, _ in full_size.named_modules() if name.endswith(("q_proj", "v_proj"))]
    assert any(name.startswith("vision.") for name in elsewhere)
    assert any(name.startswith("sam.") for name in elsewhere)


def test_all_trains_everything(glus: GLUS) -> None:
    select_trainable(glus.model, "all")
    table = trainable_table(glus.model)
    assert sum(count for _, count in table) == sum(p.numel() for p in glus.model.parameters())
    assert "LoRA" not in dict(table)
    select_trainable(glus.model, "released")
    assert set(dict(trainable_table(glus.model))) == set(RELEASED_COUNTS) - {"LoRA"}
    with pytest.raises(InputError, match="some"):
        select_trainable(glus.model, "some")  # type: ignore[arg-type]


def test_exactly_the_adapters_get_gradients(glus: GLUS) -> None:
    add_lora(glus.model, LoraSettings(dropout=0.0))
    select_trainable(glus.model, "released")
    TrainingForward(glus.model.train())([tiny_sample(glus)]).losses.total.backward()
    for name, parameter in glus.model.named_parameters():
        if name.startswith("language.decoder.layers"):
            # B is zero at the start, so A has a gradient of zero.
            assert (parameter.grad is not None) == (".lora_" in name), name
    moved = [n for n, p in glus.model.named_parameters() if "lora_B" in n and float(p.grad.abs().max()) > 0]
    assert len(moved) == 2 * glus.model.config.language.num_layers


def test_new_adapters_change_nothing_and_repeat(glus: GLUS) -> None:
    sample = tiny_sample(glus)
    before = TrainingForward(glus.model)([sample]).losses.total
    plain = {key: value.clone() for key, value in glus.model.state_dict().items()}
    state = torch.get_rng_state()
    add_lora(glus.model, LoraSettings())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(TrainingForward(glus.model.eval())([sample]).losses.total, before)
    other = tiny_glus(tiny_config(memory_dropout=0.0)).model
    torch.rand(3)
    add_lora(other, LoraSettings())
    for (name, one), (_, two) in zip(glus.model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    merged = merged_state(glus.model)
    assert set(merged) == set(plain)
    assert all(torch.equal(merged[key], plain[key]) for key in plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_act_like_the_adapters(glus: GLUS, dtype: torch.dtype) -> None:
    """In fp32 to rounding: logits and masks within 1e-5 of their largest value."""
    untouched = TrainingForward(glus.model)([tiny_sample(glus)]).seg_embedding
    live_lora(glus.model, LoraSettings(r=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj", "down_proj")))
    glus.model.to(dtype).finish_loading()
    before = {key: value.clone() for key, value in glus.model.state_dict().items()}
    merged = merged_state(glus.model)
    assert all(value.dtype == dtype for value in merged.values())
    after = glus.model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    plain = GLUSModel(glus.model.config, glus.model.seg_id).eval()
    load_state(plain, merged)
    outputs = []
    for model in (glus.model, plain):
        with torch.no_grad():
            step = TrainingForward(model)
            hidden, _ = step.read_segs([tiny_sample(glus)])
            outputs.append((model.language.lm_head(hidden), step([tiny_sample(glus)]).low_res[0]))
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for adapted, folded in zip(*outputs, strict=True):
        assert float((adapted - folded).abs().max()) <= tolerance * float(adapted.abs().max())
    with torch.no_grad():
        moved = TrainingForward(plain)([tiny_sample(glus)]).seg_embedding - untouched
    assert float(moved.abs().max()) > 0.1  # the adapters matter


def test_folding_is_fp32_arithmetic_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator).bfloat16()
    down, up = torch.randn(2, 5, generator=generator), torch.randn(6, 2, generator=generator)
    name = "language.decoder.layers.0.self_attn.q_proj"
    state = {
        f"{name}.base_layer.weight": weight,
        f"{name}.lora_A.default.weight": down,
        f"{name}.lora_B.default.weight": up,
        "seg_head.0.bias": torch.ones(1),
    }
    folded = fold_lora(state, 2.0)
    assert set(folded) == {f"{name}.weight", "seg_head.0.bias"}
    exact = (weight.double() + 2 * up.double() @ down.double()).float().bfloat16()
    assert torch.equal(folded[f"{name}.weight"], exact)


@pytest.mark.parametrize("lost", ["base_layer", "lora_A.default", "lora_B.default"])
def test_half_an_adapter_is_refused(lost: str) -> None:
    name = "language.decoder.layers.0.self_attn.q_proj"
    parts = {"base_layer": (6, 5), "lora_A.default": (2, 5), "lora_B.default": (6, 2)}
    state = {f"{name}.{part}.weight": torch.zeros(shape) for part, shape in parts.items()}
    with pytest.raises(InputError, match=r"q_proj\.weight is incomplete"):
        fold_lora({k: v for k, v in state.items() if lost not in k}, 2.0)
    wrong = {**state, f"{name}.{lost}.weight": torch.zeros(7, 3)}
    with pytest.raises(InputError, match=r"q_proj\.weight does not fit"):
        fold_lora(wrong, 2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("qproj",)}, "lora.targets"),
        ({"targets": ()}, "lora.targets"),
        ({"r": -1}, "r from 0"),
        ({"alpha": 0}, "alpha from 1"),
        ({"dropout": 1.0}, "lora.dropout"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoraSettings(**settings)


def test_without_peft(glus: GLUS, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"pip install -e \"\.\[train\]\""):
        add_lora(glus.model, LoraSettings())
    add_lora(glus.model, LoraSettings(r=0))
