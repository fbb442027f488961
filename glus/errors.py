"""The one exception type that means "your input is wrong", and how a command reports it."""

from __future__ import annotations


class InputError(ValueError):
    """Bad user input: a file, a field, a flag or a checkpoint that cannot be used.

    The message names the offending file or field and says what to do. Commands print it without a
    traceback and exit with status 2 (see `glus.__main__`).
    """


class OutputError(InputError):
    """The place to write to does not take the output: disk full, no permission, no such folder.

    Apart from `InputError` because nothing further can succeed there, while an unreadable input concerns
    only the item that needs it.
    """
