"""The one exception type that means "your input is wrong", and how a command reports it."""

from __future__ import annotations


class InputError(ValueError):
    """Bad user input: a file, a field, a flag or a checkpoint that cannot be used.

    The message names the offending file or field and says what to do. Commands print it without a
    traceback and exit with status 2 (see `glus.__main__`).
    """
