"""Attention and compilation change how fast the model runs, not what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EXPRESSIONS, tiny_clip, tiny_glus
from torch.nn.attention.bias import causal_lower_right
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glus.api import GLUS
from glus.errors import InputError
from glus.inference.infer_command import fingerprint, model_settings, parser
from glus.inference.worker import load_glus
from glus.modeling.glus import GLUSModel
from glus.modeling.speed import ATTENTION, check_attention, compile_parts

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def model() -> GLUSModel:
    return tiny_glus().model


def states(model: GLUSModel) -> list[torch.Tensor]:
    """Of all ways to read: whole rows, padded rows, a beginning, what follows it for several rows."""
    dice = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 11, 32, generator=dice)
    language = model.language
    with torch.inference_mode():
        padded = language(embeddings, torch.arange(11) < torch.tensor([11, 7, 9])[:, None])
        begun, prefix = language.begin(embeddings[:1, :5])
        after, second = language.begin(embeddings[:2, 5:8], prefix)
        owner, last = torch.tensor([0, 1, 1]), torch.tensor([2, 1, 0])
        return [
            language(embeddings),
            *(padded[row, :length] for row, length in enumerate((11, 7, 9))),
            begun,
            after,
            language.read(embeddings[:, 8:], second, owner),
            language.read(embeddings[:, 8:], second, owner, last),
        ]


def from_the_end(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **how: Any
) -> tuple[torch.Tensor, None]:
    """What flash-attn computes: causal, the last query beside the last key; it takes no mask but of padding."""
    length, keys = query.shape[2], key.shape[2]
    bias = causal_lower_right(length, keys)
    if mask is not None:
        assert mask.shape == (len(query), keys)
        bias = torch.ones(length, keys, dtype=torch.bool).tril(keys - length) & mask[:, None, None].bool()
    seen = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, scale=how["scaling"]
    )
    return seen.transpose(1, 2), None


@pytest.mark.parametrize("kind", ATTENTION[1:])
def test_states_do_not_depend_on_how_is_attended(
    model: GLUSModel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flash-attn itself runs on GPUs only; its stand-in shows that nothing is asked of it that it does not do."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", from_the_end)
    wanted = states(model)
    model.language.attention = kind
    assert model.language.attention == kind
    for found, expected in zip(states(model), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown attention 'fast'; choose one of sdpa, eager, flash_attention_2"):
        GLUS.from_pretrained("nowhere", attention="fast")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs flash-attn: pip install flash-attn"):
        check_attention("flash_attention_2", GPU, torch.bfloat16)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(InputError, match="4 or 8 bits cannot be compiled"):
        GLUS.from_pretrained("nowhere", bits=8, compiled=True)
    for device, dtype in ((CPU, torch.bfloat16), (GPU, torch.float32)):
        with pytest.raises(InputError, match="on a GPU in bf16 or fp16 only"):
            check_attention("flash_attention_2", device, dtype)
    check_attention("flash_attention_2", GPU, torch.float16)
    check_attention("eager", CPU, torch.float32)


def test_the_command_passes_them_on_and_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    tiny_glus().save_pretrained(tmp_path)
    argv = ["--version", str(tmp_path), "--device", "cpu"]
    plain, fast = (parser().parse_args([*argv, *more]) for more in ([], ["--attention", "eager", "--compile"]))
    loaded = load_glus(model_settings(fast, "cpu")).model
    assert loaded.language.attention == "eager"
    compiled = [name for name, part in loaded.named_modules() if part._compiled_call_impl is not None]
    assert "sam.image_encoder" in compiled
    assert {"vision.tower.encoder.layers.0", "language.decoder.layers.1.mlp"} <= set(compiled)
    assert load_glus(model_settings(plain, "cpu")).model.language.attention == "sdpa"
    assert fingerprint(fast, model_settings(fast, "cpu"), []) == fingerprint(
        plain, model_settings(plain, "cpu"), []
    )


def test_compiled_parts_give_the_same_masks() -> None:
    """Traced and run by torch as graphs; making machine code of them takes minutes and is torch's own matter."""
    glus, clip = tiny_glus(), tiny_clip(3)
    wanted = glus.segment(clip, EXPRESSIONS[:2])
    calls = torch._dynamo.utils.counters["stats"]
    before = calls["unique_graphs"]
    compile_parts(glus.model, backend="eager")
    found = glus.segment(clip, EXPRESSIONS[:2])
    assert calls["unique_graphs"] - before >= 4
    assert torch.equal(found.masks, wanted.masks)
    assert wanted.masks.any()
    torch.testing.assert_close(found.scores, wanted.scores, atol=2e-5, rtol=0)
