"""The LLaMA decoder (from transformers), its output head, and nothing else (section 1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from glus.config import LanguageConfig


@dataclass(frozen=True)
class Prefix:
    """What B rows begin with, P positions long, as the layers remember it.

    Attributes:
        layers: per layer the attention keys, turned by their positions, and values: (B, heads, N, H / heads).
        shared: the P - N positions before these, if all rows have them in common: one row, stored once.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    shared: Prefix | None = None

    @property
    def rows(self) -> int:
        return self.layers[0][0].shape[0]

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[2] + (self.shared.length if self.shared is not None else 0)

    @property
    def keys(self) -> list[torch.Tensor]:
        """Per layer those of all positions, (B, heads, P, H / heads)."""
        return [self.joined(number, self.rows)[0] for number in range(len(self.layers))]

    def joined(
        self, layer: int, rows: int, owner: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all positions for `rows` rows; see `LanguageModel.read` for `owner`."""
        keys, values = (
            part.expand(rows, -1, -1, -1) if owner is None else part[owner] for part in self.layers[layer]
        )
        if self.shared is None:
            return keys, values
        before = self.shared.joined(layer, rows)
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)


class _Joined:
    """Puts the keys and values of a prefix before those of the rows that follow it.

    The layers take it for a cache of transformers, but what is joined lives as long as a layer: the prefix alone
    is stored, once, however many rows follow it. With `keep` the rows are to be a prefix themselves, `prefix()`.
    """

    def __init__(self, prefix: Prefix | None, owner: torch.Tensor | None, keep: bool = False) -> None:
        self.length = prefix.length if prefix is not None else 0
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._before, self._owner, self._keep = prefix, owner, keep
        self._shared = prefix if prefix is not None and prefix.rows == 1 else None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the rows' queries of a layer attend to."""
        own = keys, values
        if self._before is not None:
            before = self._before.joined(layer, len(keys), self._owner)
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        if self._keep:
            self.kept.append(own if self._shared is not None else (keys, values))
        return keys, values

    def prefix(self) -> Prefix:
        """What was joined, the part that all rows share only once."""
        return Prefix(tuple(self.kept), self._shared)


class LanguageModel(nn.Module):
    """LLaMA over embeddings: `decoder` gives the states after the final norm, `lm_head` the logits."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.llama_config = LlamaConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_positions,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            hidden_act=config.hidden_act,
            use_cache=False,
            pad_token_id=None,
            attn_implementation="sdpa",
        )
        self.decoder = LlamaModel(self.llama_config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def attention(self) -> str:
        """How the layers attend: one of `glus.modeling.speed.ATTENTION`."""
        return str(self.llama_config._attn_implementation)

    @attention.setter
    def attention(self, name: str) -> None:
        self.llama_config._attn_implementation = self.decoder.config._attn_implementation = name

    @property
    def embedding(self) -> nn.Embedding:
        return self.decoder.embed_tokens

    def reset_rotary(self, device: torch.device) -> None:
        """Recompute the rotary frequencies in fp32.

        They are not weights: casting the module to bf16 would round them, and checkpoints hold rounded copies
        (section 2.4), which shifts positions visibly over 700 tokens.
        """
        self.decoder.rotary_emb = LlamaRotaryEmbedding(self.llama_config).to(device)

    def forward(self, embeddings: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """States after the final norm.

        Args:
            embeddings: (B, L, H).
            attention_mask: (B, L) bool, True on real positions, right-padded; None when nothing is padded.

        Returns:
            (B, L, H).
        """
        output = self.decoder(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False)
        states: torch.Tensor = output.last_hidden_state
        return states

    def begin(
        self, embeddings: torch.Tensor, prefix: Prefix | None = None, owner: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Prefix]:
        """Read what rows begin with, for `read` to go on from; arguments as there.

        Returns:
            (R, N, H) states, and the prefix made of all positions up to here.
        """
        joined = _Joined(prefix, owner, keep=True)
        states = self._states_after(self._layers(self.decoder.layers, embeddings, joined))
        return states, joined.prefix()

    def read(
        self,
        embeddings: torch.Tensor,
        prefix: Prefix | None = None,
        owner: torch.Tensor | None = None,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """States of rows that go on from what was read before; equal to those of the joined rows to rounding.

        Args:
            embeddings: (R, N, H), padded to the right at will: causal attention never looks there.
            prefix: what came before the rows; None where they begin here.
            owner: (R,) which row of the prefix each row goes on from; None if it has one row, which all do.
            last: (R,) the one position of each row that is wanted; the last layer computes no other.

        Returns:
            (R, N, H), or (R, H) with `last`.
        """
        joined, layers = _Joined(prefix, owner), self.decoder.layers
        if last is None:
            return self._states_after(self._layers(layers, embeddings, joined))
        states = self._layers(layers[:-1], embeddings, joined)
        return self._states_after(self._last_layer(layers[-1], states, last, joined))

    def _states_after(self, states: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.decoder.norm(states)
        return normed

    def _layers(self, layers: nn.ModuleList, states: torch.Tensor, joined: _Joined) -> torch.Tensor:
        """Run decoder layers; (R, N, H) -> (R, N, H)."""
        before, length = joined.length, states.shape[1]
        positions = torch.arange(before, before + length, device=states.device)[None]
        visible = self._visible(before, positions, states.dtype)
        turn = self.decoder.rotary_emb(states, position_ids=positions)
        for layer in layers:
            states = layer(
                states,
                attention_mask=visible,
                past_key_values=joined,
                position_embeddings=turn,
            )
        return states

    def _visible(self, before: int, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """The mask of rows at `positions` (1, N) that follow `before` others, as the layers' attention takes it.

        None where it knows by itself: torch's kernel if nothing came before; flash-attn always, which counts
        from the last key.
        """
        if self.attention == "flash_attention_2" or (self.attention == "sdpa" and not before):
            return None
        visible = torch.arange(before + positions.shape[1], device=positions.device) <= positions[0, :, None]
        return self._mask(visible[None, None], dtype)

    def _mask(self, visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(R, 1, N, K) bool, or what plain attention adds in its place."""
        if self.attention != "eager":
            return visible
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)

    def _last_layer(
        self, layer: nn.Module, states: torch.Tensor, last: torch.Tensor, joined: _Joined
    ) -> torch.Tensor:
        """One layer for one position of each row: keys and values of all, the rest of it alone; -> (R, H)."""
        attention: Any = layer.self_attn
        before, (rows, length, _) = joined.length, states.shape
        normed: torch.Tensor = layer.input_layernorm(states)  # type: ignore[operator]

        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

        here = torch.arange(rows, device=states.device)
        positions = torch.arange(before, before + length, device=states.device)[None]
        cos, sin = self.decoder.rotary_emb(states, position_ids=positions)
        keys, values = heads(attention.k_proj(normed)), heads(attention.v_proj(normed))
        query = heads(attention.q_proj(normed[here, last][:, None]))
        _, keys = apply_rotary_pos_emb(keys, keys, cos, sin)
        query, _ = apply_rotary_pos_emb(query, query, cos[0, last][:, None], sin[0, last][:, None])
        keys, values = joined.update(keys, values, attention.layer_idx)
        visible = torch.arange(before + length, device=states.device) <= (before + last)[:, None]
        attend = eager_attention_forward if self.attention == "eager" else sdpa_attention_forward
        mask = self._mask(visible[:, None, None], query.dtype)
        seen, _ = attend(attention, query, keys, values, mask, scaling=attention.scaling)
        kept = states[here, last] + attention.o_proj(seen.flatten(1))
        added: torch.Tensor = layer.mlp(layer.post_attention_layernorm(kept))  # type: ignore[operator]
        return kept + added

    def logits(self, states: torch.Tensor, fp32: bool) -> torch.Tensor:
        """Next-token logits of states (..., H) -> (..., vocabulary); in fp32 arithmetic if asked (D52)."""
        if fp32 and states.dtype != torch.float32:
            return states.float() @ self.lm_head.weight.float().T
        logits: torch.Tensor = self.lm_head(states)
        return logits
