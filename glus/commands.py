"""A table of commands: shows itself as help, and loads the module of a command only when it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

Command = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class CommandTable:
    """Commands of one program.

    Attributes:
        program: what stands before the command on the command line.
        noun: what a command is called in messages, e.g. "data set".
        entries: command -> ("module:function", help line); the function takes the arguments after the command
            and returns the exit status.
        names_program: the functions take the program's name as `prog`, for their own help.
    """

    program: str
    noun: str
    entries: Mapping[str, tuple[str, str]]
    names_program: bool = False

    def usage(self) -> str:
        metavar = self.noun.upper().replace(" ", "")
        width = max(map(len, self.entries))
        lines = [f"usage: {self.program} {metavar} [options]", "", f"{self.noun}s:"]
        lines += [f"  {name:<{width}}  {text}" for name, (_, text) in self.entries.items()]
        return "\n".join([*lines, "", f"{self.program} {metavar} --help shows the options of one."])

    def run(self, argv: Sequence[str], call: Callable[[Command, Sequence[str]], int] | None = None) -> int:
        """Run the command named by `argv[0]`; status 2 with the usage when there is none of that name.

        Args:
            call: calls the loaded command with its arguments; the outermost table handles errors here.
        """
        if not argv or argv[0] in ("-h", "--help"):
            sys.stdout.write(self.usage() + "\n")
            return 0 if argv else 2
        if argv[0] not in self.entries:
            sys.stderr.write(f"error: unknown {self.noun} {argv[0]!r}\n{self.usage()}\n")
            return 2
        module, function = self.entries[argv[0]][0].split(":")
        main = getattr(importlib.import_module(module), function)
        if self.names_program:
            main = partial(main, prog=f"{self.program} {argv[0]}")
        return call(main, argv[1:]) if call is not None else int(main(argv[1:]))
