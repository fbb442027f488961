"""What a vision tower and a language model attend to, opened up so that it can be taught.

Attention that starts out even gets next to no gradient to where it should go; told once, it learns in a hundredth
of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from glus.modeling.glus import GLUSModel
from glus.text.tokenizer import IMAGE_INDEX


@dataclass(frozen=True)
class Reading:
    """Rows that begin alike, as a language model read them.

    B samples whose shared beginnings are P positions long, R rows, N cells per frame.

    Attributes:
        answers: (R, H) states that predict each [SEG].
        senses: (R, H) the same states where they enter layer `NOUN`: what they know of the words.
        paths: (B, N, H) states of the last frame's image tokens behind layer `TRACK`.
        facts: (B, N, H) states of the last frame's image tokens, where they enter layer `NOUN`.
        track: (B, heads, N, P) how strongly these tokens attend to the beginning in layer `TRACK`, -inf where they
            cannot; before the softmax.
        noun: (R, heads, P) the same of the states that predict [SEG], in layer `NOUN`.
        look: (R, heads, P) the same in layer `LOOK`.
        frames: first position of each frame's image tokens in the beginning.
    """

    answers: torch.Tensor
    senses: torch.Tensor
    paths: torch.Tensor
    facts: torch.Tensor
    track: torch.Tensor
    noun: torch.Tensor
    look: torch.Tensor
    frames: tuple[int, ...]


TRACK, NOUN, LOOK = -5, -3, -2
"""Layers whose attention is taught: image tokens find their object in other frames; the answer finds what the
noun fits; then what the whole sentence means. The last layer makes the answer."""


def read(model: GLUSModel, rows: Sequence[Sequence[Sequence[int]]], images: torch.Tensor) -> Reading:
    """Read conversations, those of one sample after its images computed once.

    Args:
        rows: per sample its conversations, cut before [SEG]; all alike up to their last image.
        images: (frames of all samples, N, H) image tokens, sample by sample.

    Raises:
        ValueError: conversations that differ before their last image.
    """
    first, flat = rows[0][0], [row for sample in rows for row in sample]
    cut = last_image(first) + 1
    if any(row[:cut] != first[:cut] or IMAGE_INDEX in row[cut:] for row in flat):
        raise ValueError("the conversations of a pretraining batch must be alike up to their last image")
    prefix = model.assemble([first[:cut]] * len(rows), images).embeddings
    ids = _padded([row[cut:] for row in flat], images.device)
    owner = torch.arange(len(rows), device=images.device).repeat_interleave(
        torch.tensor([len(sample) for sample in rows], device=images.device)
    )
    tails = model.language.embedding(ids).to(prefix.dtype)
    layers = model.language.decoder.layers
    asking = {str(number): layers[number].get_submodule("self_attn.q_proj") for number in (TRACK, NOUN, LOOK)}
    with _Watch(asking, {"paths": layers[TRACK + 1], "facts": layers[NOUN]}) as seen:
        _, shared = model.language.begin(prefix)
        after = model.language.read(tails, shared, owner)
    keys = shared.keys
    row = torch.arange(len(flat), device=images.device)
    last = torch.tensor([len(row) - cut - 1 for row in flat], device=images.device)
    score = partial(_scores, model)
    answer = {
        layer: score(layer, seen[str(layer)][1][row, last][:, None], keys[layer][owner], prefix.shape[1] + last)
        for layer in (NOUN, LOOK)
    }
    cells, length = images.shape[1], prefix.shape[1]
    places = torch.arange(length - cells, length, device=images.device)
    track = score(TRACK, seen[str(TRACK)][0][:, -cells:], keys[TRACK], places.expand(len(rows), -1))
    later = torch.arange(length, device=images.device) > places[:, None]
    starts = [i + (cells - 1) * n for n, i in enumerate(i for i, t in enumerate(first[:cut]) if t == IMAGE_INDEX)]
    return Reading(
        answers=after[row, last],
        senses=seen["facts"][1][row, last],
        paths=seen["paths"][0][:, -cells:],
        facts=seen["facts"][0][:, -cells:],
        track=track.masked_fill(later, -torch.inf),
        noun=answer[NOUN][:, :, 0],
        look=answer[LOOK][:, :, 0],
        frames=tuple(starts),
    )


@dataclass(frozen=True)
class Sight:
    """Frames as the CLIP tower saw them; P patches, S = P + 1 positions, CLS first.

    Attributes:
        tokens: (B, N, H) image tokens of the language model.
        patches: (B, P, C) states of the patches where they enter layer `GATHER`.
        attention: per layer up to `GATHER` that of the patches, (B, heads, P, S), before the softmax.
    """

    tokens: torch.Tensor
    patches: torch.Tensor
    attention: tuple[torch.Tensor, ...]


GATHER = 2
"""Layer of the CLIP tower in which patches of an object are taught to gather what the others show. The layers
before it are taught to look at the neighbours, so that 3 x 3 patches are seen as one."""
NEIGHBOURS: tuple[tuple[tuple[int, int], ...], ...] = (((0, -1), (0, 1)), ((-1, 0), (1, 0)))
"""Row and column steps that the first heads of the layers before `GATHER` look along."""


def look(model: GLUSModel, pixels: torch.Tensor) -> Sight:
    """See frames (B, 3, S, S)."""
    layers = model.vision.tower.encoder.layers
    asked = [(number, name) for number in range(GATHER + 1) for name in ("q", "k")]
    parts = {f"{name}{number}": layers[number].get_submodule(f"self_attn.{name}_proj") for number, name in asked}
    with _Watch(parts, {"patches": layers[GATHER]}) as seen:
        tokens = model.encode_clip(pixels)
    heads = model.config.vision.num_heads
    scores = []
    for number in range(GATHER + 1):
        queries, keys = (seen[f"{name}{number}"][0].unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qk")
        scores.append(queries[:, :, 1:].float() @ keys.float().transpose(2, 3) * queries.shape[-1] ** -0.5)
    return Sight(tokens, seen["patches"][0][:, 1:], tuple(scores))


def neighbour(side: int, step: tuple[int, int], device: torch.device) -> torch.Tensor:
    """(P, 1 + P) of 0 and 1: each patch's neighbour in a direction, none beyond the border; CLS first."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    there_row, there_column = row + step[0], column + step[1]
    inside = (there_row.clamp(0, side - 1) == there_row) & (there_column.clamp(0, side - 1) == there_column)
    wanted = torch.zeros(side * side, 1 + side * side)
    here = (row * side + column)[inside]
    wanted[here, 1 + (there_row * side + there_column)[inside]] = 1
    return wanted.to(device)


def attention_loss(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy (nats) of attention and where it should go, over what is to be found at all.

    Args:
        scores: (..., heads, P) before the softmax.
        wanted: (..., P) weights >= 0; all 0 where there is nothing to find.
    """
    total = wanted.sum(dim=-1)
    share = wanted / total.clamp(min=1e-6)[..., None]
    missed = -(share[..., None, :] * scores.log_softmax(dim=-1).clamp(min=-100)).sum(dim=-1).mean(dim=-1)
    present = (total > 0).float()
    return (missed * present).sum() / present.sum().clamp(min=1)


def last_image(row: Sequence[int]) -> int:
    """Index of a conversation's last image."""
    return max(i for i, token in enumerate(row) if token == IMAGE_INDEX)


class _Watch:
    """Keeps what leaves some modules, and what enters others, call by call."""

    def __init__(self, leaving: Mapping[str, nn.Module], entering: Mapping[str, nn.Module]) -> None:
        self._seen: dict[str, list[torch.Tensor]] = {name: [] for name in (*leaving, *entering)}
        self._leaving, self._entering = leaving, entering

    def __getitem__(self, name: str) -> list[torch.Tensor]:
        return self._seen[name]

    def __enter__(self) -> _Watch:
        self._hooks = [
            module.register_forward_hook(lambda module, inputs, output, kept=self._seen[name]: kept.append(output))
            for name, module in self._leaving.items()
        ]
        self._hooks += [
            module.register_forward_pre_hook(lambda module, inputs, kept=self._seen[name]: kept.append(inputs[0]))
            for name, module in self._entering.items()
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _scores(
    model: GLUSModel, layer: int, queries: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Attention before the softmax: queries (A, Q, heads * d) at positions (A, Q) or (A,), keys (A, heads, P, d)
    already turned -> (A, heads, Q, P)."""
    attention = model.language.decoder.layers[layer].self_attn
    asked = queries.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2).float()
    turn = model.language.decoder.rotary_emb(asked, positions.reshape(len(queries), -1))
    asked, _ = apply_rotary_pos_emb(asked, asked, *turn)
    return asked @ keys.float().transpose(2, 3) * attention.scaling


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Token ids as a rectangle, padded to the right with id 0."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
