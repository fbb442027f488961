"""The LLaMA decoder (from transformers), its output head, and nothing else (section 1.2)."""

from __future__ import annotations

import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from glus.config import LanguageConfig


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

    def with_shared_prefix(
        self, prefix: torch.Tensor, tails: torch.Tensor, owner: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """States of rows that begin alike, each beginning computed once.

        Row r is `prefix[owner[r]]` followed by `tails[r]`; the states equal those of the joined rows to rounding.

        Args:
            prefix: (B, P, H) embeddings, nothing padded.
            tails: (R, N, H) embeddings, padded to the right at will: causal attention never looks there.
            owner: (R,) index of each row's prefix.

        Returns:
            (B, P, H) states of the prefixes, (R, N, H) states of the tails, and per layer the attention keys
            (B, heads, P, H / heads) of the prefixes.
        """
        first = self.decoder(inputs_embeds=prefix, use_cache=True)
        layers = first.past_key_values.layers
        shared = DynamicCache()
        for number, layer in enumerate(layers):
            shared.update(layer.keys[owner], layer.values[owner], number)
        before, length = prefix.shape[1], tails.shape[1]
        positions = torch.arange(before + length, device=tails.device)
        visible = positions[None] <= positions[before:, None]
        second = self.decoder(
            inputs_embeds=tails,
            attention_mask=visible.expand(len(tails), 1, -1, -1),
            position_ids=positions[None, before:],
            past_key_values=shared,
            use_cache=True,
        )
        return first.last_hidden_state, second.last_hidden_state, [layer.keys for layer in layers]

    def logits(self, states: torch.Tensor, fp32: bool) -> torch.Tensor:
        """Next-token logits of states (..., H) -> (..., vocabulary); in fp32 arithmetic if asked (D52)."""
        if fp32 and states.dtype != torch.float32:
            return states.float() @ self.lm_head.weight.float().T
        logits: torch.Tensor = self.lm_head(states)
        return logits
