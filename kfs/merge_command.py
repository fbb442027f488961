"""`python -m kfs merge`: a training checkpoint becomes a selector one can load."""

from __future__ import annotations

from collections.abc import Sequence

from glus.training.merge_command import carry_out, parser
from kfs.recipe import export_selector


def main(argv: Sequence[str]) -> int:
    p = parser(
        "python -m kfs merge",
        "Put the shards of a training checkpoint together, fold LoRA in, and write one folder that the selector's "
        "commands read. Needs neither a GPU nor DeepSpeed.",
    )
    return carry_out(p, export_selector, argv)
