"""The language model's shared beginnings."""

from __future__ import annotations

import torch

from glus.config import LanguageConfig
from glus.modeling.language import LanguageModel


def test_shared_prefixes_give_the_states_of_the_joined_rows() -> None:
    torch.manual_seed(0)
    sizes = LanguageConfig(hidden_size=32, num_layers=3, num_heads=2, intermediate_size=64, vocab_size=50)
    model = LanguageModel(sizes)
    torch.nn.init.normal_(model.decoder.layers[1].self_attn.q_proj.weight)
    torch.nn.init.normal_(model.decoder.layers[1].self_attn.k_proj.weight)
    prefix = torch.randn(2, 11, 32, requires_grad=True)
    tails = torch.randn(5, 4, 32)
    owner = torch.tensor([0, 0, 1, 1, 1])
    weights = torch.randn(5, 4, 32)

    before, after, keys = model.with_shared_prefix(prefix, tails, owner)
    joined = model(torch.cat([prefix[owner], tails], dim=1))
    torch.testing.assert_close(joined[:, :11], before[owner], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(joined[:, 11:], after, rtol=1e-5, atol=1e-5)

    assert [layer.shape for layer in keys] == [(2, 2, 11, 16)] * 3

    (shared,) = torch.autograd.grad((after * weights).sum(), prefix)
    (plain,) = torch.autograd.grad((joined[:, 11:] * weights).sum(), prefix)
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-5)
