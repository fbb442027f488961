"""Tables on screen, and JSON, CSV and text files."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glus.errors import OutputError
from glus.io import disk_errors, write_bytes, write_json

logger = logging.getLogger(__name__)


def table(rows: Sequence[tuple[str, Sequence[float | None]]], columns: Sequence[str]) -> str:
    """A text table of fractions in percent; None shows as a dash."""
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"{c:>9}" for c in columns)]
    for name, values in rows:
        cells = "".join(f"{'-' if v is None else f'{100 * v:.2f}':>9}" for v in values)
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(lines)


def csv_text(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """CSV with a header line."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(columns), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def check_places(*files: Path | None) -> None:
    """Raise an OutputError for a file whose folder does not exist: better known before the scoring than after."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise OutputError(f"cannot write {file}: no folder {file.parent}; create it or choose another place")


def save_text(path: Path, text: str) -> None:
    """Write a text file atomically; an OutputError when that is impossible."""
    with disk_errors(path):
        write_bytes(path, text.encode("utf-8"))
    logger.info("wrote %s", path)


def save_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; an OutputError when that is impossible."""
    with disk_errors(path):
        write_json(path, value)
    logger.info("wrote %s", path)
