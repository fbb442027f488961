"""`python -m kfs merge`: a training checkpoint becomes a selector one can load."""

from __future__ import annotations

from collections.abc import Sequence

from glus.training import merge_command


def main(argv: Sequence[str]) -> int:
    return merge_command.main(argv, "python -m kfs merge")
