"""Write docs/api.md from the docstrings of the public names; `--check` only says whether it is up to date."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import glus

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
HEAD = """# Python API

Made from the docstrings by `scripts/make_api_docs.py`; do not edit. `from glus import ...`:
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(part for name in glus.__all__ for part in _section(name, getattr(glus, name)))])


def _section(name: str, thing: Any) -> list[str]:
    lines = [f"## {name}", "", "```text", inspect.getdoc(thing) or "", "```", ""]
    if dataclasses.is_dataclass(thing):
        rows = [f"| `{f.name}` | `{_type(f.type)}` | {_default(f)} |" for f in dataclasses.fields(thing)]
        lines += ["| field | type | default |", "|---|---|---|", *rows, ""]
    for method, function in vars(thing).items():
        function = function.fget if isinstance(function, property) else getattr(function, "__func__", function)
        if method.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        call = (
            "" if isinstance(vars(thing)[method], property) else str(inspect.signature(function)).replace("'", "")
        )
        lines += [f"### {name}.{method}", "", "```text", f"{method}{call}", "", inspect.getdoc(function) or ""]
        lines += ["```", ""]
    return lines


def _type(kind: Any) -> str:
    return str(kind if isinstance(kind, str) else getattr(kind, "__name__", kind)).replace("|", "or")


def _default(field: dataclasses.Field[Any]) -> str:
    return "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"


def main(argv: list[str]) -> int:
    """The command."""
    wanted = page()
    if "--check" in argv:
        return 0 if PAGE.is_file() and PAGE.read_text() == wanted else 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
