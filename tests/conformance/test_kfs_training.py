"""Losses, gradients, what trains, and the merge of adapters (conformance kfs/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kfs_golden import add_golden_lora, golden_selector, golden_tensors, load

from glus.text.labels import collate
from glus.text.tokenizer import GlusTokenizer
from glus.training.parameters import LoraSettings, add_lora, fold_lora, merged_state
from kfs.model import RELEASED, SelectorConfig, SelectorModel
from kfs.training import select_trainable, selector_losses

pytest.importorskip("peft")

PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def model(kfs_root: Path) -> SelectorModel:
    model = golden_selector(kfs_root)
    add_golden_lora(model, kfs_root)
    return model


def tokens_of(kfs_root: Path, sample: dict[str, Any]) -> torch.Tensor:
    """Tokens of a sample's images, once per conversation."""
    clip = torch.from_numpy(load(kfs_root, "image_tokens")[1][f"{sample['video']}_tokens"])
    return clip[[*sample["reference_frames"], sample["target_frame"]] * len(sample["prompts"])]


def test_steps(kfs_root: Path, model: SelectorModel, kfs_tokenizer: GlusTokenizer) -> None:
    spec, arrays = load(kfs_root, "train_step")
    assert spec["runs"]
    for name, run in spec["runs"].items():
        samples = [spec[letter] for letter in name]
        batch = collate([sample["prompts"] for sample in samples], kfs_tokenizer)
        np.testing.assert_array_equal(batch.input_ids, arrays[f"{name}_input_ids"])
        np.testing.assert_array_equal(batch.labels, arrays[f"{name}_labels"])
        np.testing.assert_array_equal(batch.offset, run["offset"])
        lengths = batch.attention_mask.sum(axis=1)
        rows = [row[:length].tolist() for row, length in zip(batch.input_ids, lengths, strict=True)]
        labels = [row[:length].tolist() for row, length in zip(batch.labels, lengths, strict=True)]
        tokens = torch.cat([tokens_of(kfs_root, sample) for sample in samples])
        check_forward(model, rows, labels, tokens, run, arrays[f"{name}_hidden"])
        model.zero_grad()
        losses = selector_losses(model, rows, labels, tokens, [torch.tensor(s["scores"]) for s in samples])
        ours = [losses.total.item(), losses.ce.item(), losses.iou.item()]
        np.testing.assert_allclose(ours, [run["loss"], run["ce_loss"], run["iou_loss"]], rtol=0, atol=5e-5)
        scores = losses.scores.detach()
        np.testing.assert_allclose(scores, run["predicted_scores"], rtol=0, atol=5e-5)
        losses.total.backward()
        prefix = f"{name}_grad."
        wanted = {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}
        check_gradients(model, wanted, run.get("grad_norms", {}), spec["embed_lm_rows"])


@torch.no_grad()
def check_forward(
    model: SelectorModel,
    rows: list[list[int]],
    labels: list[list[int]],
    tokens: torch.Tensor,
    run: dict[str, Any],
    hidden: np.ndarray,
) -> None:
    batch = model.assemble(rows, tokens, labels)
    assert list(batch.embeddings.shape[:2]) == run["expanded_shape"]
    assert batch.attention_mask.sum(dim=1).tolist() == run["attention_true_per_row"]
    assert batch.labels is not None
    places = (batch.labels != -100).nonzero()
    ids = batch.labels[places[:, 0], places[:, 1]]
    assert [places.tolist(), ids.tolist()] == [run["label_positions"], run["label_ids"]]
    states = model.states(batch)
    logits = model.language.logits(states[places[:, 0], places[:, 1] - 1], fp32=True)
    ours = logits.log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]
    np.testing.assert_allclose(ours, run["label_logprobs"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(model.score_states(states, batch), hidden, rtol=0, atol=1e-4)


def check_gradients(
    model: SelectorModel, wanted: dict[str, np.ndarray], norms: dict[str, float], rows: list[int]
) -> None:
    """Each within 1e-4 of the tensor's largest value."""
    grads = {
        RELEASED.to_foreign(name): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    for key, value in wanted.items():
        grad = grads[key.removesuffix(".rows")]
        assert grad is not None, key
        ours = grad[rows] if key.endswith(".rows") else grad
        np.testing.assert_allclose(ours, value, rtol=0, atol=1e-4 * np.abs(value).max(), err_msg=key)
    for key, norm in norms.items():
        grad = grads[key]
        assert grad is not None, key
        np.testing.assert_allclose(float(grad.norm()), norm, rtol=1e-4, err_msg=key)


def test_what_trains(kfs_root: Path, model: SelectorModel) -> None:
    trained = {RELEASED.to_foreign(name) for name, value in model.named_parameters() if value.requires_grad}
    assert trained == set(json.loads((kfs_root / "train_step.json").read_text())["trainable"])


def test_recorded_training_checkpoint_is_ours(kfs_root: Path) -> None:
    """The 7B one, without peft's prefix and under our names: all keys, and those that train."""
    with torch.device("meta"):
        model = SelectorModel(SelectorConfig(), score_id=32000)
        add_lora(model, LoraSettings(r=8, alpha=16, targets=("q_proj", "v_proj")))
    select_trainable(model)
    shapes = {}
    for file in ("train", "trainable"):
        recorded = json.loads((kfs_root / f"manifest_kfs_7b_{file}.json").read_text())
        named = {RELEASED.to_own(key.removeprefix(PREFIX)): tuple(shape) for key, shape in recorded.items()}
        shapes[file] = {key: shape for key, shape in named.items() if key is not None}
    ours = {key.replace(".base_layer.", "."): value for key, value in model.named_parameters()}
    assert {key: tuple(value.shape) for key, value in ours.items()} == shapes["train"]
    assert {key for key, value in ours.items() if value.requires_grad} == shapes["trainable"].keys()


def test_merge(kfs_root: Path, model: SelectorModel) -> None:
    spec, arrays = load(kfs_root, "merge")
    merged = {RELEASED.to_foreign(key): value for key, value in merged_state(model).items()}
    saved = {key: list(value.shape) for key, value in merged.items() if "vision_tower" not in key}
    assert saved == {key: shape for key, shape in spec["keys"].items() if not key.endswith("inv_freq")}
    compared = [key for key in arrays if key in merged]
    assert compared
    for key in compared:
        np.testing.assert_allclose(merged[key], arrays[key], rtol=0, atol=1e-6, err_msg=key)


def test_merge_of_a_training_checkpoint(kfs_root: Path) -> None:
    """The same from a consolidated state, whose adapted layers keep their plain names."""
    spec, arrays = load(kfs_root, "merge")
    shapes = json.loads((kfs_root / "tiny_model.json").read_text())["shapes"]
    shapes |= json.loads((kfs_root / "train_step.json").read_text())["lora_shapes"]
    merged = fold_lora(RELEASED.rename(golden_tensors(kfs_root, shapes), "golden"), spec["scaling"])
    for key in (key for key in arrays if not key.startswith("bf16.")):
        own = RELEASED.to_own(key)
        assert own is not None
        np.testing.assert_allclose(merged[own], arrays[key], rtol=0, atol=1e-6, err_msg=key)
