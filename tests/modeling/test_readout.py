"""The LLM's answer at the end of a window: which token it is, and what a failed frame leads to."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_clip, tiny_config, tiny_glus, traces

from glus.config import Behaviour, InferenceConfig
from glus.inference.reference import clip_features
from glus.modeling.glus import lowest_argmax
from glus.video import open_frames

CLIP = tiny_clip(7)
LOWER = [torch.bfloat16, torch.float16]


def test_first_frame_failed_means_an_empty_bank_for_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 7.4: frame 1 then sees no memory and gets `no_mem_embed`."""
    glus = tiny_glus()
    answers = iter([False] + [True] * 6)
    monkeypatch.setattr(glus.model, "accepts", lambda readout: torch.tensor([next(answers)]))
    steps = traces(glus, CLIP)
    assert [s.output is None for s in steps] == [True] + [False] * 6
    assert [s.recalled for s in steps] == [[], [], [1], [2], [3], [3, 4], [3, 5]]
    assert steps[1].output is not None
    features = clip_features(glus.model, open_frames(CLIP), InferenceConfig()).features(1)
    assert torch.equal(steps[1].output.embed, features.embed + glus.model.sam.no_mem_embed.reshape(1, -1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, *LOWER])
def test_ties_go_to_the_lowest_id(dtype: torch.dtype) -> None:
    """D53."""
    rows = torch.tensor([[1.0, 3, 3, 2], [5, 5, 5, 5], [-1, -2, -1, -3], [0, 0, 0, 7]], dtype=dtype)
    assert lowest_argmax(rows).tolist() == [1, 0, 0, 3]
    many = torch.zeros(3, 100_000, dtype=dtype)
    many[:, [70_000, 123, 99_999]] = 1
    assert lowest_argmax(many).tolist() == [123] * 3
    assert lowest_argmax(rows[0]).item() == 1


def test_switching_for_a_block_is_undone() -> None:
    """`using` is how the self-check runs under its own behaviour."""
    glus = tiny_glus(tiny_config(behaviour=Behaviour(token_pooling="grid")))
    seen = []

    def run() -> None:
        with glus.model.using(Behaviour(memory_features="raw")):
            seen.append((glus.model.sam.behaviour.memory_features, glus.model.vision.pooling))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run()
    assert seen == [("raw", "consecutive")]
    assert glus.model.config.behaviour == glus.model.sam.behaviour == Behaviour(token_pooling="grid")
    assert glus.model.vision.pooling == "grid"


def test_a_training_step_after_inference() -> None:
    """Tensors that modules cached in inference mode must not end in a graph."""
    glus = tiny_glus()
    traces(glus, tiny_clip(3))
    model = glus.model.train()
    rows = [[1, 2, 3, glus.tokenizer.seg_id]]
    bank = model.new_bank(stride=1)
    loss = torch.zeros(())
    for position in range(3):
        readout = model.read_window(rows, torch.zeros(0, 4, 32))
        features = model.encode_frame(torch.randn(1, 3, 256, 256))
        output = model.segment_frame(features, readout.embedding, bank, position)
        model.remember(features, output, bank, position)
        loss = loss + output.low_res.float().pow(2).mean()
    loss.backward()
    for part in (model.language.embedding, model.seg_head[0], model.sam.sam_mask_decoder.mask_tokens):
        assert part.weight.grad is not None
        assert float(part.weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in model.sam.memory_encoder.parameters())
