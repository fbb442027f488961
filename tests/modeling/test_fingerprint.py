"""The self-check: a checkpoint's own fingerprint notices a load that went wrong, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import write_released
from tiny import tiny_glus
from tiny_text import sentencepiece_model

from glus.api import GLUS
from glus.config import Behaviour
from glus.errors import InputError
from glus.modeling.checkpoints import load_state
from glus.text.tokenizer import GlusTokenizer

PARTS = [
    "language.decoder.embed_tokens.weight",
    "language.decoder.layers.1.self_attn.v_proj.weight",
    "language.lm_head.weight",
    "vision.tower.encoder.layers.0.self_attn.q_proj.weight",
    "vision.projector.weight",
    "seg_head.2.weight",
    "sam.image_encoder.trunk.blocks.2.attn.qkv.weight",
    "sam.memory_attention.layers.0.cross_attn_image.v_proj.weight",
    "sam.memory_encoder.fuser.layers.0.gamma",
    "sam.no_mem_embed",
    "sam.sam_mask_decoder.mask_tokens.weight",
    "sam.sam_mask_decoder.output_hypernetworks_mlps.2.layers.0.weight",
    "sam.sam_mask_decoder.iou_prediction_head.layers.1.weight",
    "sam.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
]


@pytest.mark.parametrize("key", PARTS)
def test_self_check_sees_an_altered_weight(saved: Path, key: str) -> None:
    loaded = GLUS.from_pretrained(saved, dtype="fp32")
    report = loaded.self_check()
    assert report.worst <= report.tolerance
    weight = loaded.model.state_dict()[key]
    weight.copy_(weight.flatten().roll(1).reshape(weight.shape))
    with pytest.raises(InputError, match="self-check failed"):
        loaded.self_check()


@pytest.mark.parametrize("group", ["language.decoder.layers.{}.", "vision.tower.encoder.layers.{}."])
def test_self_check_sees_swapped_layers(saved: Path, group: str) -> None:
    loaded = GLUS.from_pretrained(saved, dtype="fp32")
    state = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    swapped = {
        k.replace(group.format(a), group.format(b)): v
        for a, b in ((0, 1), (1, 0))
        for k, v in state.items()
        if k.startswith(group.format(a))
    }
    load_state(loaded.model, {**state, **swapped})
    with pytest.raises(InputError, match="self-check failed"):
        loaded.self_check()


def test_self_check_sees_another_tokenizer(saved: Path) -> None:
    loaded = GLUS.from_pretrained(saved, dtype="fp32")
    added = loaded.tokenizer.added_tokens
    turned = {name: min(added.values()) + max(added.values()) - index for name, index in added.items()}
    loaded.tokenizer = GlusTokenizer(sentencepiece_model(), turned)
    with pytest.raises(InputError, match="tokenizer"):
        loaded.self_check()


def test_self_check_compares_weights_not_switches(saved: Path) -> None:
    GLUS.from_pretrained(saved, dtype="fp32", compat="released").self_check()
    other = Behaviour(
        strip_around_added_tokens=False, lower_case=False, memory_features="raw", token_pooling="grid"
    )
    GLUS.from_pretrained(saved, dtype="fp32", behaviour=other).self_check()


def test_a_model_in_training_mode_is_fingerprinted_in_evaluation_mode(glus: GLUS, tmp_path: Path) -> None:
    """Memory attention has dropout in training mode, which would record noise."""
    trained = tiny_glus()
    trained.model.train()
    trained.model.sam.eval()
    trained.model.sam.memory_attention.train()
    modes = [module.training for module in trained.model.modules()]
    trained.save_pretrained(tmp_path)
    assert [module.training for module in trained.model.modules()] == modes
    GLUS.from_pretrained(tmp_path, dtype="fp32").self_check()


def test_no_fingerprint_no_check(saved: Path, tmp_path: Path, glus: GLUS, clip: Path) -> None:
    with pytest.raises(InputError, match="carries no fingerprint"):
        glus.self_check()
    folder = write_released(tmp_path / "released", glus)
    with pytest.raises(InputError, match="carries no fingerprint"):
        GLUS.from_pretrained(folder, vision_tower=clip, sam2=glus.config.sam2).self_check()
