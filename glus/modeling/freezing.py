"""Frozen parts build no graph: the one rule that decides where gradients go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def graph_if_trained(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Run a block without a graph when none of its parameters is trained (section 1.11, D30).

    In the released recipe CLIP and SAM-2's encoder, memory attention and memory encoder are frozen, and nothing
    behind them is to be learned through them. A model trained from nothing trains them, and then the gradient
    flows, through the memory of earlier frames too.
    """
    trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
    with torch.set_grad_enabled(trained):
        yield
