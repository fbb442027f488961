"""`python -m glus data submit`: write and check the zip files that the evaluation servers take.

MeViS valid wants `<video>/<exp_id>/<frame>.png`, Ref-YouTube-VOS valid wants the same below `Annotations/`, both
8-bit gray with 0 and 255. Source: reference evaluation.md 2.1 and 3.9.
"""

from __future__ import annotations

import argparse
import logging
import sys
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from glus.data.datasets import expressions_path
from glus.errors import InputError
from glus.evaluation.expression_files import read_videos
from glus.evaluation.parallel import default_workers
from glus.evaluation.png import read_gray
from glus.io import atomic_path, disk_errors
from glus.masks import mask_png

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # a fixed one, so that the same masks give the same bytes
_MAX_ENTRY = 1 << 26  # no mask PNG is larger; a zip that says otherwise is not unpacked


@dataclass(frozen=True)
class Target:
    """What a server expects: entries below `prefix`; `videos` of them in the public set."""

    prefix: str
    videos: int
    drop_test_videos: bool


TARGETS = {
    "mevis": Target("", 140, drop_test_videos=False),
    # The file of `valid` also lists the test videos, which the server does not take.
    "refyoutube_vos": Target("Annotations/", 202, drop_test_videos=True),
}


@dataclass(frozen=True)
class Plan:
    """The names `<video>/<exp_id>/<frame>.png` that a submission must hold, in order, and the videos that may
    lie beside them in the masks folder but do not belong to it."""

    names: tuple[str, ...]
    other_videos: frozenset[str] = frozenset()


def read_plan(target: Target, meta: Path, test_meta: Path | None) -> Plan:
    """The plan that an expression file asks for.

    Raises:
        InputError: a fault in a file; a missing `test_meta` where the target needs one; nothing to submit.
    """
    videos = read_videos(meta)
    excluded: frozenset[str] = frozenset()
    if target.drop_test_videos:
        if test_meta is None:
            raise InputError(f"{meta}: also lists the test videos; give the file that names those (--test_meta)")
        excluded = frozenset(video.name for video in read_videos(test_meta))
    kept = [video for video in videos if video.name not in excluded]
    if len(kept) != target.videos:
        logger.warning("%s: %d videos to submit; the public set has %d", meta, len(kept), target.videos)
    names = sorted(f"{v.name}/{e.exp_id}/{frame}.png" for v in kept for e in v.entries for frame in v.frames)
    if not names:
        raise InputError(f"{meta}: no masks to submit; every video in it is a test video or has no expressions")
    return Plan(tuple(names), excluded)


def write_submission(
    target: Target, plan: Plan, masks: Path, out: Path, allow_extra: bool = False, workers: int | None = None
) -> int:
    """Write the zip of the masks in `<masks>/<video>/<exp_id>/<frame>.png`; returns the number of entries.

    The same masks give the same bytes, whatever their encoding and the number of threads. `out` appears complete
    or not at all.

    Raises:
        InputError: masks are missing, surplus or unusable; every fault is listed.
    """
    if not masks.is_dir():
        raise InputError(f"{masks}: no such folder")
    present = {path.relative_to(masks).as_posix() for path in masks.glob("*/*/*.png") if not _hidden(path, masks)}
    present = {name for name in present if name.split("/")[0] not in plan.other_videos}
    faults = _compare(plan, present, str(masks), allow_extra)
    names = [name for name in plan.names if name in present]

    def pack(name: str) -> tuple[str, tuple[int, ...], bytes, str]:
        try:
            samples = _checked((masks / name).read_bytes(), str(masks / name), allow_one_bit=True)
        except (InputError, OSError) as error:
            return name, (), b"", str(error)
        return name, samples.shape, mask_png(samples, 8), ""

    sizes = _Sizes()
    with disk_errors(out), atomic_path(out) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, shape, content, fault in _in_threads(pack, names, workers, "writing"):
                fault = fault or sizes.check(name, shape)
                if fault:
                    faults.append(fault)
                elif not faults:
                    info = zipfile.ZipInfo(target.prefix + name, _TIMESTAMP)
                    info.create_system = 3
                    info.external_attr = 0o644 << 16
                    archive.writestr(info, content)
        _raise(faults, str(masks))
    return len(plan.names)


def validate_submission(target: Target, plan: Plan, path: Path, workers: int | None = None) -> int:
    """Check an existing zip: every mask there and nothing else, readable, 8-bit gray 0/255, one size per video.

    Returns:
        The number of masks.

    Raises:
        InputError: anything is wrong; every fault is listed.
    """
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable zip file ({error})") from None
    with archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
        inside = {info.filename: info for info in files if info.filename.startswith(target.prefix)}
        faults = [f"{i.filename}: not below {target.prefix}" for i in files if i.filename not in inside]
        counted = Counter(info.filename for info in files)
        faults += [f"{name}: is in the zip {n} times" for name, n in counted.items() if n > 1]
        present = {name.removeprefix(target.prefix) for name in inside}
        faults += _compare(plan, present, str(path), allow_extra=False)
        sizes = _Sizes()

        def check(name: str) -> tuple[str, tuple[int, ...], str]:
            try:
                content = _entry(archive, inside[target.prefix + name])
                return name, _checked(content, name, allow_one_bit=False).shape, ""
            except InputError as error:
                return name, (), str(error)

        names = [name for name in plan.names if name in present]
        for name, shape, fault in _in_threads(check, names, workers, "checking"):
            if fault := fault or sizes.check(name, shape):
                faults.append(fault)
    _raise(faults, str(path))
    return len(plan.names)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Content of a zip entry; the library checks its CRC."""
    if info.file_size > _MAX_ENTRY:
        raise InputError(f"{info.filename}: {info.file_size} bytes is no mask")
    try:
        return archive.read(info)
    # A damaged, encrypted or exotically compressed entry raises one of these.
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{info.filename}: cannot be unpacked ({error})") from None


def _checked(content: bytes, name: str, allow_one_bit: bool) -> NDArray[np.uint8]:
    """The samples of a gray mask PNG of 0 and 255 (or, where allowed, of 1 bit)."""
    samples, depth = read_gray(content, name)
    if depth == 1 and allow_one_bit:
        return samples
    if depth != 8:
        raise InputError(f"{name}: {depth} bits per pixel; the server takes 8-bit gray")
    if bool(((samples != 0) & (samples != 255)).any()):
        raise InputError(f"{name}: has values other than 0 and 255")
    return samples


class _Sizes:
    """One size per video."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[tuple[int, ...], str]] = {}

    def check(self, name: str, shape: tuple[int, ...]) -> str:
        """The fault of a mask, or an empty text."""
        first, example = self._seen.setdefault(name.split("/")[0], (shape, name))
        if shape == first:
            return ""
        return f"{name}: {shape[0]}x{shape[1]}, but {example} is {first[0]}x{first[1]}"


def _compare(plan: Plan, present: set[str], where: str, allow_extra: bool) -> list[str]:
    expected = set(plan.names)
    faults = _grouped(expected - present, expected, f"missing in {where}")
    if not allow_extra:
        faults += _grouped(present - expected, present, "not asked for by the expression file")
    return faults


def _grouped(names: set[str], universe: set[str], what: str) -> list[str]:
    """One line per name, but whole folders of `universe` that are in `names` as one line."""

    def count(items: Iterable[str], depth: int) -> dict[str, int]:
        folders: dict[str, int] = {}
        for item in items:
            folder = "/".join(item.split("/")[:depth])
            folders[folder] = folders.get(folder, 0) + 1
        return folders

    lines = []
    rest = names
    for depth in (1, 2):
        whole = count(universe, depth)
        full = {f: n for f, n in count(rest, depth).items() if n == whole[f] and n > 1}
        lines += [f"{folder}/ ({n} masks): {what}" for folder, n in full.items()]
        rest = {name for name in rest if "/".join(name.split("/")[:depth]) not in full}
    return sorted(lines + [f"{name}: {what}" for name in rest])


def _in_threads(
    function: Callable[[str], Result], names: Sequence[str], workers: int | None, label: str
) -> Iterator[Result]:
    """`function` of every name, in order, a bounded number ahead; decoding and compressing run outside the
    interpreter's lock."""
    workers = default_workers() if workers is None else workers
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(names), desc=label, unit="mask", disable=None) as bar:
        waiting: deque[Future[Result]] = deque()
        for name in names:
            waiting.append(pool.submit(function, name))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
                bar.update()
        while waiting:
            yield waiting.popleft().result()
            bar.update()


def _raise(faults: list[str], where: str) -> None:
    if faults:
        raise InputError("\n  ".join([f"{where}: {len(faults)} faults, nothing was written or accepted", *faults]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--val_set", "--dataset", choices=sorted(TARGETS), default="mevis", help="data set")
    parser.add_argument("--dataset_dir", type=Path, default=Path("data"), help="holds mevis, Refer-YouTube-VOS")
    parser.add_argument("--set_name", default="valid", help="split whose expressions were answered")
    parser.add_argument("--meta", type=Path, help="its meta_expressions.json, where it lies elsewhere")
    parser.add_argument("--test_meta", type=Path, help="refyoutube_vos: that of the test videos")
    parser.add_argument("--masks", type=Path, help="masks, as the inference scripts write them")
    parser.add_argument("--out", type=Path, help="zip file to write")
    parser.add_argument("--validate", type=Path, metavar="ZIP", help="check this zip instead of writing one")
    parser.add_argument("--allow_extra", action="store_true", help="leave surplus masks out instead of failing")
    parser.add_argument("--workers", type=int, help="threads (default: one per CPU)")


def _find_test_meta(args: argparse.Namespace) -> Path | None:
    """The expression file of the test videos: as given, beside `--meta`, or in the data folder."""
    given: Path | None = args.test_meta
    if given is not None or not TARGETS[args.val_set].drop_test_videos:
        return given
    if args.meta is None:
        return expressions_path(args.val_set, args.dataset_dir, "test")
    beside: Path = args.meta.parent.parent / "test" / args.meta.name
    return beside if beside.is_file() else None


def main(argv: Sequence[str]) -> int:
    """Write or check a submission; returns the exit status.

    Raises:
        InputError: wrong options, or faults in the masks or the zip.
    """
    parser = argparse.ArgumentParser(
        prog="python -m glus data submit",
        description="Write or check a zip for the MeViS or Ref-YouTube-VOS server.",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    if (args.validate is None) == (args.masks is None or args.out is None):
        raise InputError("give --masks and --out to write a zip, or --validate to check one")
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers must be at least 1, found {args.workers}")
    target = TARGETS[args.val_set]
    meta = args.meta or expressions_path(args.val_set, args.dataset_dir, args.set_name)
    plan = read_plan(target, meta, _find_test_meta(args))
    if args.validate is None:
        count = write_submission(target, plan, args.masks, args.out, args.allow_extra, args.workers)
        sys.stdout.write(f"wrote {args.out}: {count} masks\n")
    else:
        count = validate_submission(target, plan, args.validate, args.workers)
        sys.stdout.write(f"{args.validate} is complete: {count} masks\n")
    return 0
