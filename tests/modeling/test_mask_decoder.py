"""The SAM-2 path: sizes follow the image size, batches equal single runs, the fallback, post-processing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import EXPRESSIONS, tiny_clip, tiny_config, tiny_glus

from glus.config import Behaviour, Sam2Config
from glus.errors import InputError
from glus.modeling.mask_decoder import (
    STABILITY_THRESHOLD,
    FrameFeatures,
    MaskOutput,
    Sam2Path,
    stability_score,
    upsample_logits,
)


def pixels(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def embeddings(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def sam() -> Sam2Path:
    return tiny_glus().model.sam


@pytest.fixture(scope="module")
def features(sam: Sam2Path) -> FrameFeatures:
    return sam.encode_frame(pixels(256))


@pytest.fixture(scope="module")
def output(sam: Sam2Path, features: FrameFeatures) -> MaskOutput:
    with torch.inference_mode():
        return sam.decode(features, sam.condition(features, [], 5), embeddings(5))


@pytest.mark.parametrize("size", [256, 320, 448, 512, 640])
@torch.inference_mode()
def test_sizes_follow_the_image_size(size: int) -> None:
    glus = tiny_glus(tiny_config(size))
    model, sam = glus.model, glus.model.sam
    cell = size // 16
    assert (glus.config.sam2.embed_size, glus.config.sam2.low_res_size) == (cell, size // 4)
    bank = model.new_bank(3)
    for position in range(2):
        frame = model.encode_frame(pixels(size, position))
        assert [tuple(m.shape) for m in frame.high_res] == [(1, 4, 4 * cell, 4 * cell), (1, 8, 2 * cell, 2 * cell)]
        assert frame.embed.shape == frame.position.shape == (1, 32, cell, cell)
        out = model.segment_frame(frame, embeddings(2), bank, position)
        assert out.low_res.shape == (2, 1, size // 4, size // 4)
        assert out.candidates.shape == (2, 4, size // 4, size // 4)
        assert out.embed.shape == (2, 32, cell, cell)
        entry = model.remember(frame, out, bank, position)
        assert entry is not None
        assert entry.features.shape == entry.position.shape == (2, 8, cell, cell)
    assert sam.dense_position().shape == (1, 32, cell, cell)
    assert glus.segment(tiny_clip(2), EXPRESSIONS[0]).masks.any()


@pytest.mark.parametrize("size", [0, 128, 255, 300, 1000])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(InputError, match="256 or more and a multiple of 64"):
        Sam2Config(image_size=size)


def test_a_frame_of_another_size_is_refused(sam: Sam2Path) -> None:
    with pytest.raises(ValueError, match="takes 256x256 frames"):
        sam.encode_frame(pixels(320))


@torch.inference_mode()
def test_a_batch_of_expressions_equals_single_runs() -> None:
    """Over several frames, memory included."""
    model = tiny_glus().model
    count = 3
    batch_bank, banks = model.new_bank(3), [model.new_bank(3) for _ in range(count)]
    for position in range(4):
        frame = model.encode_frame(pixels(256, position))
        prompts = embeddings(count, position)
        together = model.segment_frame(frame, prompts, batch_bank, position)
        entry = model.remember(frame, together, batch_bank, position)
        assert entry is not None
        for row in range(count):
            alone = model.segment_frame(frame, prompts[row : row + 1], banks[row], position)
            single = model.remember(frame, alone, banks[row], position)
            assert single is not None
            scale = float(alone.candidates.std())
            torch.testing.assert_close(together.candidates[row], alone.candidates[0], atol=1e-3 * scale, rtol=0)
            torch.testing.assert_close(together.low_res[row], alone.low_res[0], atol=1e-3 * scale, rtol=0)
            torch.testing.assert_close(together.iou[row], alone.iou[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(together.embed[row], alone.embed[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(together.token[row], alone.token[0], atol=1e-3, rtol=0)
            spread = float(single.features.std())
            torch.testing.assert_close(entry.features[row], single.features[0], atol=5e-3 * spread, rtol=0)


def test_dense_position_is_the_prompt_encoders_own(sam: Sam2Path) -> None:
    """In fp32 our explicit code equals the package's."""
    torch.testing.assert_close(sam.dense_position(), sam.sam_prompt_encoder.get_dense_pe(), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_prompt_is_the_text_embedding_alone(sam: Sam2Path, features: FrameFeatures) -> None:
    """Sparse = the [SEG] embedding, dense = `no_mask_embed` (1.7): the tokens the decoder then sees."""
    seen: dict[str, torch.Tensor] = {}
    decoder = sam.sam_mask_decoder
    handle = decoder.transformer.register_forward_pre_hook(
        lambda _, args: seen.update(image=args[0], code=args[1], tokens=args[2])
    )
    prompts, embed = embeddings(2), sam.condition(features, [], 2)
    sam.decode(features, embed, prompts)
    handle.remove()
    wanted = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
    assert seen["tokens"].shape == (2, 7, 32)
    assert torch.equal(seen["tokens"][:, :6], wanted.expand(2, -1, -1))
    assert torch.equal(seen["tokens"][:, 6], prompts)
    assert torch.equal(seen["image"], embed + sam.sam_prompt_encoder.no_mask_embed.weight[..., None, None])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 56), (97, 64), (64, 64), (300, 20)])
def test_each_frame_gets_masks_of_its_own_size(height: int, width: int, output: MaskOutput) -> None:
    """D18: the size is an argument per frame; resize first, threshold after."""
    full = upsample_logits(output.low_res.to(torch.bfloat16), height, width)
    assert full.shape == (5, height, width)
    assert full.dtype == torch.float32
    wanted = F.interpolate(
        output.low_res.bfloat16().float(), (height, width), mode="bilinear", align_corners=False
    )
    assert torch.equal(full, wanted[:, 0])


def plain_stability(logits: torch.Tensor) -> float:
    delta = float(torch.tensor(0.05))
    inner = sum(1 for v in logits.flatten().tolist() if v > delta)
    outer = sum(1 for v in logits.flatten().tolist() if v > -delta)
    return inner / outer if outer else 1.0


def test_stability_score_counts_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.cat([0.1 * torch.randn(4, 9, 9, generator=generator), torch.full((1, 9, 9), -1.0)])
    maps[0, 0, :2] = torch.tensor([0.05, -0.05])  # both comparisons are strict
    assert stability_score(maps).tolist() == pytest.approx([plain_stability(m) for m in maps])
    assert stability_score(maps)[4] == 1.0


@torch.inference_mode()
def test_fallback_takes_the_best_alternative(sam: Sam2Path, features: FrameFeatures) -> None:
    """C9: below 0.98 the alternative of largest predicted IoU, per expression; else the single mask."""
    embed, prompts = sam.condition(features, [], 40), 2 * embeddings(40)
    out = sam.decode(features, embed, prompts)
    unstable = out.stability < STABILITY_THRESHOLD
    assert 0 < int(unstable.sum()) < 40, "the prompts no longer exercise both branches"
    for row in range(40):
        pick = int(out.candidate_iou[row, 1:].argmax()) + 1 if unstable[row] else 0
        assert torch.equal(out.low_res[row, 0], out.candidates[row, pick])
        assert out.iou[row] == out.candidate_iou[row, pick]
        assert float(out.stability[row]) == pytest.approx(plain_stability(out.candidates[row, 0]))


@torch.inference_mode()
def test_memory_mask_is_soft_and_at_image_size(sam: Sam2Path, features: FrameFeatures, output: MaskOutput) -> None:
    """1.9: upsampled logits, sigmoid, times 20 minus 10; no binarisation, no second sigmoid."""
    seen: list[torch.Tensor] = []
    handle = sam.memory_encoder.mask_downsampler.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    entry = sam.encode_memory(features, output)
    handle.remove()
    wanted = F.interpolate(output.low_res, (256, 256), mode="bilinear", align_corners=False).sigmoid() * 20 - 10
    torch.testing.assert_close(seen[0], wanted)
    assert entry.pointer is None
    assert not entry.features.requires_grad


def test_gradients_reach_the_decoder_only(sam: Sam2Path) -> None:
    """1.11: encoder, memory attention and memory encoder run without gradient."""
    sam.train()
    try:
        frame = sam.encode_frame(pixels(256))
        prompts = embeddings(2).requires_grad_()
        out = sam.decode(frame, sam.condition(frame, [], 2), prompts)
        entry = sam.encode_memory(frame, out)
        assert not entry.features.requires_grad  # D30: no graph is built for it
        out.low_res.float().pow(2).mean().backward()
        assert prompts.grad is not None
        assert prompts.grad.abs().sum() > 0
        touched = {name for name, p in sam.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert touched
        assert all(name.startswith("sam_mask_decoder.") or "no_mask_embed" in name for name in touched)
        assert not any(
            part in name for name in touched for part in ("conv_s0", "conv_s1", "iou_pred", "obj_score_h")
        )
        assert not any(f"hypernetworks_mlps.{i}." in name for name in touched for i in (1, 2, 3))
    finally:
        sam.zero_grad()
        sam.eval()


@torch.inference_mode()
def test_presence_is_not_consulted_by_default() -> None:
    """C7: the object score is computed and ignored."""
    behaviour = Behaviour()
    assert not behaviour.object_score_gating
    glus = tiny_glus()
    frame = glus.model.encode_frame(pixels(256))
    out = glus.model.segment_frame(frame, embeddings(20), None, 0)
    assert float(out.object_score.min()) < 0 < float(out.object_score.max())
    assert float(out.low_res.min()) > -1000
    assert math.isfinite(float(out.low_res.sum()))
