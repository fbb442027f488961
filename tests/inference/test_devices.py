"""Nothing in the engine needs a value on the host but what it waits for, and nothing lies on another device.

Meta tensors have a device and shapes but no values: mixing them with the CPU's raises, and so does a look at one.
So the whole path can be walked at the true sizes of the 7B model, on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_engine import patched, sizes
from tiny import tiny_clip, tiny_config
from tiny_text import tiny_tokenizer

from glus.config import Behaviour, InferenceConfig, ModelConfig
from glus.inference import engine, live
from glus.inference.queries import Query
from glus.modeling.glus import GLUSModel, Readout
from glus.video import open_frames

META = torch.device("meta")
FRAMES = 5


class Host:
    """The two places where the engine waits for the device, with made-up answers."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.fetched: list[tuple[int, ...]] = []

    def accepts(self, readout: Readout) -> torch.Tensor:
        assert readout.hidden.is_meta
        self.asked.append(len(readout.hidden))
        return torch.ones(len(readout.hidden), dtype=torch.bool)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.is_meta
        self.fetched.append(tuple(tensor.shape))
        return torch.zeros(tensor.shape, dtype=tensor.dtype)


def on_meta(config: ModelConfig) -> GLUSModel:
    with META:
        model = GLUSModel(config, tiny_tokenizer().seg_id)
    model = model.to(torch.bfloat16).to(META).eval()
    model.finish_loading()
    return model


def walk(config: ModelConfig, stream: bool = False) -> Host:
    host, model, tokenizer, clip = Host(), on_meta(config), tiny_tokenizer(), tiny_clip(FRAMES)
    with patched(model, accepts=host.accepts), patched(engine, plan=sizes(2, 100, 64), _to_host=host.fetch):
        found: Iterator[Any]
        if stream:
            found = live.stream(model, tokenizer, iter(clip), ["a dog", "the cat"], InferenceConfig(), lookahead=2)
            results = [result for step in found for result in step]
        else:
            queries = [Query("a dog", 2), Query("the black cat")]
            found = engine.segment_clip(model, tokenizer, open_frames(clip), queries, InferenceConfig())
            results = [result for _, result in found]
    assert not any(result.failed for result in results)
    return host


def test_the_true_sizes_on_one_device() -> None:
    """LLaMA-7B, CLIP-L, hiera-L: a clip with a key frame, so both directions."""
    host = walk(ModelConfig())
    # Forward, chunks (0, 1), (2, 3), (4); backward, chunks (2, 1), (0): as many reads, whatever is asked in each.
    assert host.asked == [2, 4, 2, 2, 1]
    assert host.fetched == [shape for rows in (1, 1, 2, 2, 2, 1, 1, 1) for shape in ((rows, 40, 56), (rows,))]


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour.preset("released"),
        Behaviour(
            memory_temporal_encoding=True,
            object_pointers=True,
            conditioning_frame=True,
            memory_features="raw",
            object_score_gating=True,
            token_pooling="grid",
        ),
    ],
)
def test_every_behaviour_on_one_device(behaviour: Behaviour) -> None:
    assert sum(walk(tiny_config(behaviour=behaviour)).asked) == 2 * FRAMES + 1


def test_streams_on_one_device() -> None:
    assert sum(walk(tiny_config(), stream=True).asked) == 2 * FRAMES


def test_a_tensor_elsewhere_would_raise() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        _ = torch.zeros(2, device=META) + torch.zeros(2)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(2, device=META).tolist()
