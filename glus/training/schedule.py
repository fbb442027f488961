"""The learning rate of a step, as a pure function: nothing to store, nothing to restore."""

from __future__ import annotations

import math

from glus.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of optimizer step `step`, counted from 1, of a run of `steps` (reference glus.md 6.1, D36).

    Warm-up rises in equal parts, `lr / warmup_steps` first and `lr` last; then comes the decay, whose last step
    still learns. `first_step: full` is the original's: one step behind, from 0, with the whole rate before it.
    """
    warmup = config.warmup_steps
    if config.first_step == "full":
        if step == 1:
            return config.lr
        step, shift = step - 2, 0
    else:
        shift = 1
    if step < warmup or (shift and step == warmup):
        return config.lr * step / warmup
    left = (steps - step + shift) / max(1, steps - warmup)
    return config.lr * _decayed(config, min(1.0, max(0.0, left)))


def _decayed(config: OptimizerConfig, left: float) -> float:
    """Share of the rate when the share `left` of the decay, 1 to 0, lies ahead."""
    if config.decay == "constant":
        return 1.0
    shape = left if config.decay == "linear" else (1 - math.cos(math.pi * left)) / 2
    return config.final + (1 - config.final) * shape
