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

    before, shared = model.begin(prefix)
    after = model.read(tails, shared, owner)
    joined = model(torch.cat([prefix[owner], tails], dim=1))
    torch.testing.assert_close(joined[:, :11], before[owner], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(joined[:, 11:], after, rtol=1e-5, atol=1e-5)

    assert [keys.shape for keys in shared.keys] == [(2, 2, 11, 16)] * 3

    (shared,) = torch.autograd.grad((after * weights).sum(), prefix)
    (plain,) = torch.autograd.grad((joined[:, 11:] * weights).sum(), prefix)
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_prefixes_follow_one_another_and_one_position_can_be_read_alone() -> None:
    torch.manual_seed(0)
    sizes = LanguageConfig(hidden_size=32, num_layers=3, num_heads=2, intermediate_size=64, vocab_size=50)
    model = LanguageModel(sizes)
    for layer in model.decoder.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.weight)
        torch.nn.init.normal_(layer.self_attn.k_proj.weight)
    first, second, tails = torch.randn(1, 7, 32), torch.randn(2, 5, 32), torch.randn(4, 6, 32)
    owner, last = torch.tensor([1, 0, 0, 1]), torch.tensor([5, 2, 0, 4])
    joined = model(torch.cat([first.expand(4, -1, -1), second[owner], tails], dim=1))
    _, shared = model.begin(second, model.begin(first)[1])
    assert shared.length == 12
    torch.testing.assert_close(model.read(tails, shared, owner), joined[:, 12:], rtol=1e-5, atol=1e-5)
    wanted = joined[torch.arange(4), 12 + last]
    torch.testing.assert_close(model.read(tails, shared, owner, last), wanted, rtol=1e-5, atol=1e-5)
    # what is padding to one row does not reach another position
    tails[torch.arange(6) > last[:, None]] = 50.0
    torch.testing.assert_close(model.read(tails, shared, owner, last), wanted, rtol=1e-5, atol=1e-5)
