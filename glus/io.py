"""Files in and out: checked JSON, atomic writes, and names that cannot leave their folder.

Everything the package writes goes through `atomic_path` or `write_json`, so a killed process leaves either
the old file or the new one, never half of it.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glus.errors import InputError, OutputError

_TEMPORARY = ".tmp-"  # how temporary names begin
_LONGEST_NAME = 200  # file systems take 255 bytes, of which a temporary name and a suffix need some


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on failure removed.

    The temporary name keeps the suffix of `path`, because image and video writers choose a codec by it.
    """
    target = Path(path)
    temporary = target.with_name(f"{_TEMPORARY}{os.getpid()}-{target.name}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


# What a user can set right; any other OSError is a defect and keeps its traceback.
_DISK_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS"),
        *("ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG", "EIO"),
    )
)


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a failure to write `path` (disk full, no permission, no such folder) into an `OutputError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
        temporary = Path(error.filename or path).name.startswith(_TEMPORARY)
        place = path if temporary else error.filename or path
        raise OutputError(f"cannot write {place}: {error.strerror}; {hint}") from None


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON to `path` atomically. Floats keep full precision; NaN is refused."""
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8"))


def read_json(path: str | os.PathLike[str], what: str = "JSON file", unique_keys: bool = False) -> Any:
    """Parse the JSON file at `path`.

    Args:
        unique_keys: refuse an object that has a key twice, of which parsers silently keep the last.

    Raises:
        InputError: the file is missing, unreadable, or not valid JSON; the message names it and, for a
            syntax error, the line and column.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(out := dict(items)) < len(items):
            twice = next(key for key, count in Counter(key for key, _ in items).items() if count > 1)
            raise InputError(f"{what} {path} has the key {twice!r} twice in one object")
        return out

    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle, object_pairs_hook=pairs if unique_keys else None)
    except FileNotFoundError:
        raise InputError(f"{what} not found: {path}") from None
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(
            f"{what} {path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "is the download complete?"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{what} {path} cannot be read: {error}") from None


def expect(value: Any, kind: type | tuple[type, ...], path: str | os.PathLike[str], field: str) -> Any:
    """Return `value` if it is an instance of `kind`, else raise an InputError naming file and field."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    stray_bool = isinstance(value, bool) and bool not in kinds  # bool is an int to isinstance
    if stray_bool or not isinstance(value, kinds):
        wanted = " or ".join(k.__name__ for k in kinds)
        raise InputError(f"{path}: field {field} must be {wanted}, found {type(value).__name__}: {value!r:.80}")
    return value


def field(mapping: Any, key: str, kind: type | tuple[type, ...], path: str | os.PathLike[str], where: str) -> Any:
    """`mapping[key]`, checked: raises an InputError when the field is missing or has another type."""
    expect(mapping, dict, path, where)
    if key not in mapping:
        raise InputError(f"{path}: {where} has no field {key!r}")
    return expect(mapping[key], kind, path, f"{where}.{key}")


def is_unicode(text: str) -> bool:
    """False for text with lone surrogates, which JSON can spell but no file name or tokenizer can take."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


def safe_name(name: str, path: str | os.PathLike[str], where: str, nested: bool = False) -> str:
    """Check that `name`, which came from a data file, stays inside the folder it is joined to.

    Args:
        nested: allow `/` between parts (ReVOS video names contain it). `.` and `..` parts, absolute paths,
            backslashes, control characters, text that is no valid Unicode and overlong parts are always refused.
    """
    parts = name.split("/") if nested else [name]
    bad = any(p in ("", ".", "..") for p in parts) or "\\" in name or any(ord(c) < 32 for c in name)
    bad = bad or not is_unicode(name)
    if bad or (not nested and "/" in name):
        raise InputError(f"{path}: {where} {name!r} is not a plain file name; it would leave the output folder")
    if any(len(part.encode()) > _LONGEST_NAME for part in parts):
        raise InputError(f"{path}: {where} {name[:40]!r}... is longer than {_LONGEST_NAME} bytes; shorten it")
    return name
