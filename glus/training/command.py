"""`python -m glus train`: train, resume, dry-run or replay, and export what was trained."""

from __future__ import annotations

from collections.abc import Sequence

from glus.errors import InputError
from glus.training.flags import given, overrides


def main(argv: Sequence[str]) -> int:
    args = given(argv)  # --help answers before torch is loaded
    from glus.training.config import merge, read_content, train_config

    content = merge(read_content(args.config) if args.config else {}, overrides(args))
    if "model" not in content:
        raise InputError("nothing to start from: give --version, or a --config with model.version or model.sizes")
    config = train_config(content, args.config or "command line")
    from glus.training.build import GlusRecipe
    from glus.training.running import run

    return run(GlusRecipe(config), args)
