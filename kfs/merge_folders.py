"""`kfs/utils/merge_folder.py`: several folders of IoU files, scores or masks become one.

Training takes a folder per data set, so nothing needs it; it is there for the original's flow. All is looked at
before anything is written, each file is put in place whole, and a second run finds everything done.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from glus.errors import InputError
from glus.evaluation.frame_ious import check_policy
from glus.io import atomic_path, disk_errors

_NAMED = 5


def merge_folders(sources: Sequence[Path], target: Path) -> int:
    """Copy the files of all `sources` into `target`, below the same names; hidden files stay behind.

    Args:
        target: may hold files already, those of an earlier run among them; none is changed or removed.

    Returns:
        How many files were copied; those that were there already, with the same content, are not counted.

    Raises:
        InputError: a source that is missing, empty, inside the target or around it; a file that two of them hold
            with different content; IoU files of different policies. Nothing is written then.
        OutputError: the disk does not take it; run it again.
    """
    found: dict[Path, Path] = {}
    conflicts = []
    policy = check_policy(target) if target.is_dir() else None
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; choose a folder")
    for source in sources:
        policy = check_policy(source, policy) or policy
        for name in _files(source, target):
            other = found.setdefault(name, source / name)
            there = [path for path in (other, target / name) if path.exists() and path != source / name]
            conflicts += [f"{source / name} and {path}" for path in there if not _same(source / name, path)]
    for folder in sorted({parent for name in found for parent in name.parents}):
        files = [path for path in (found.get(folder), target / folder) if path is not None and path.is_file()]
        conflicts += [f"{path}, a file, and a folder {folder}" for path in files]
    if conflicts:
        more = f"\n  and {len(conflicts) - _NAMED} more" if len(conflicts) > _NAMED else ""
        shown = "\n  ".join(conflicts[:_NAMED])
        raise InputError(f"files of the same name with different content, nothing was copied:\n  {shown}{more}")
    new = {name: path for name, path in found.items() if not (target / name).exists()}
    with disk_errors(target):
        for name, path in new.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target / name) as temporary:
                shutil.copyfile(path, temporary)
    return len(new)


def _files(source: Path, target: Path) -> list[Path]:
    """Files below `source`, relative to it."""
    if not source.is_dir():
        raise InputError(f"{source} is not a folder")
    one, other = source.resolve(), target.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise InputError(f"{source} and {target} lie within each other; choose a folder apart from the sources")
    found: list[Path] = []
    for place, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if linked := next((Path(place) / name for name in folders if (Path(place) / name).is_symlink()), None):
            raise InputError(f"{linked} is a link; name the folder it leads to as a source of its own")
        found += [(Path(place) / name).relative_to(source) for name in sorted(names) if not name.startswith(".")]
    if not found:
        raise InputError(f"{source} is empty; there is nothing to merge")
    return found


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="merge_folder.py",
        description="Copy several folders of IoU files, scores or masks into one. A file that two of them hold "
        "with different content is an error, and then nothing is copied.",
    )
    parser.add_argument("sources", type=Path, nargs="+", metavar="DIR", help="folders to merge")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder that takes their files")
    args = parser.parse_args(argv)
    count = merge_folders(args.sources, args.out)
    sys.stdout.write(f"{count} files copied to {args.out}\n")
    return 0
