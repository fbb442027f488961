"""`python -m glus data check`: is a data set complete and sound? (layouts: reference glus.md 4.1, 4.2)

Names the faults and counts what is there. The same readers as in inference parse the files, so that what passes
here is read without complaint there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from glus.data.datasets import DATASETS, TRAINING_SPLIT, expressions_path, read_video, read_videos
from glus.data.mask_sources import object_numbers
from glus.data.mask_store import MaskStore
from glus.data.records import FRAME_SUFFIX, Record
from glus.data.sampling import SamplingRules
from glus.errors import InputError
from glus.evaluation import png
from glus.evaluation.labels import present_ids
from glus.evaluation.parallel import default_workers, map_items
from glus.evaluation.tracks import RleTrack
from glus.io import expect, read_json
from glus.io import field as require
from glus.video import read_image

# Published sizes, videos and expressions (reference evaluation.md 2.1); other counts are remarked on.
PUBLISHED: dict[tuple[str, str], tuple[int, int]] = {
    ("mevis", "train"): (1662, 23051),
    ("mevis", "valid_u"): (50, 793),
    ("mevis", "valid"): (140, 2236),
    ("mevis", "test"): (154, 2490),
}
_SHOWN = 10
_JPEG = b"\xff\xd8\xff"


@dataclass
class Report:
    """What a check found. faults: one line each; notes: what is odd but no fault; counts in reading order."""

    dataset: str
    set_name: str
    counts: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self, everything: bool = False) -> str:
        """The report as lines; without `everything` only the first faults."""
        lines = [f"{self.dataset} {self.set_name}: " + ", ".join(f"{n} {what}" for what, n in self.counts.items())]
        lines += [f"note: {note}" for note in self.notes]
        shown = self.faults if everything else self.faults[:_SHOWN]
        lines += [f"fault: {fault}" for fault in shown]
        if len(shown) < len(self.faults):
            lines.append(f"... and {len(self.faults) - len(shown)} more faults; --all lists them")
        lines.append(f"{len(self.faults)} faults" if self.faults else "no faults")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Video:
    """A video whose entry could be read. size: (height, width) as the entry states it."""

    name: str
    records: tuple[Record, ...]
    size: tuple[int, int] | None

    @property
    def frames(self) -> tuple[str, ...]:
        return self.records[0].frames


@dataclass
class _Seen:
    """What the frame files of a video are like."""

    faults: list[str]
    extra: int = 0
    size: tuple[int, int] | None = None


def check(dataset: str, data_dir: Path, set_name: str, deep: bool = False, workers: int = 1) -> Report:
    """Check one split of a data set.

    Args:
        deep: decode every frame and every mask PNG, too; run-length codes are always decoded.
        workers: processes for looking at the frames.

    Raises:
        InputError: unknown data set or split, or an expression file that cannot be read at all.
    """
    report = Report(dataset, set_name)
    path = expressions_path(dataset, data_dir, set_name)
    try:
        read_json(path, "expression file", unique_keys=True)
    except InputError as error:
        report.faults.append(str(error))
    folder = data_dir / DATASETS[dataset].frames.format(split=set_name)
    videos = list(_videos(dataset, folder, path, report))
    seen = map_items(partial(_frames, folder, deep), videos, workers, label="frames")
    sizes = {}
    for video, look in zip(videos, seen, strict=True):
        report.faults += look.faults
        sizes[video.name] = look.size or video.size
    report.counts |= {
        "videos": len(videos),
        "expressions": sum(len(video.records) for video in videos),
        "frames": sum(len(video.frames) for video in videos),
    }
    if extra := sum(look.extra for look in seen):
        report.notes.append(f"{extra} frame files are in no frame list")
    short = sum(len(video.frames) < SamplingRules.min_frames for video in videos)
    if short and report.set_name == TRAINING_SPLIT:
        report.notes.append(
            f"{short} videos have fewer than {SamplingRules.min_frames} frames; training skips them"
        )
    _expected_counts(report, path.parent)
    _masks(report, data_dir, videos, sizes, deep)
    return report


def _videos(dataset: str, folder: Path, path: Path, report: Report) -> Iterator[_Video]:
    """The entries without a fault in them; what is wrong with the others goes into the report."""
    entries = read_videos(path)
    if not entries:
        report.faults.append(f"{path}: lists no videos")
    for name, entry in entries.items():
        try:
            records = tuple(read_video(dataset, folder, path, name, entry))
            size = _stated_size(path, name, entry)
        except InputError as error:
            report.faults.append(str(error))
            continue
        if not records:
            report.faults.append(f"{path}: video {name} has no expressions")
            continue
        if list(records[0].frames) != entry["frames"] and DATASETS[dataset].masks.endswith(".json"):
            # Readers sort, the masks of the file go by position: one of them would be wrong.
            report.faults.append(f"{path}: frames of video {name} are not in the order of their names")
        yield _Video(name, records, size)


def _stated_size(path: Path, name: str, entry: dict[str, Any]) -> tuple[int, int] | None:
    if "height" not in entry and "width" not in entry:
        return None
    where = f"videos.{name}"
    values = [expect(entry.get(key), int, path, f"{where}.{key}") for key in ("height", "width")]
    return values[0], values[1]


def _frames(folder: Path, deep: bool, video: _Video) -> _Seen:
    """Look at the frame files of a video: all there, JPEGs, of one size."""
    place = folder / video.name
    if not place.is_dir():
        return _Seen([f"{place}: folder missing ({len(video.frames)} frames)"])
    there = {p.name: p for p in place.iterdir() if p.name.endswith(FRAME_SUFFIX)}
    wanted = [f"{name}{FRAME_SUFFIX}" for name in video.frames]
    seen = _Seen(
        [f"{place / name}: missing" for name in wanted if name not in there], len(there.keys() - set(wanted))
    )
    for name in wanted:
        if name in there:
            try:
                size = _frame_size(there[name], deep)
            except InputError as error:
                seen.faults.append(str(error))
                continue
            for other, whose in ((seen.size, "other frames are"), (video.size, "the expression file says")):
                if other is not None and size is not None and other != size:
                    seen.faults.append(f"{there[name]}: {_by(size)} pixels, {whose} {_by(other)}")
            seen.size = seen.size or size
    return seen


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _frame_size(path: Path, deep: bool) -> tuple[int, int] | None:
    """(height, width) of a frame file; InputError when it is no whole JPEG, as far as was looked."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(len(_JPEG))
        if not head:
            raise InputError(f"{path}: empty file")
        if head != _JPEG:
            raise InputError(f"{path}: not a JPEG file")
        if deep:
            height, width = read_image(path).shape[:2]
            return height, width
        with Image.open(path) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _expected_counts(report: Report, folder: Path) -> None:
    """Compare with what the set should have: a synthetic set's own card, or the published size."""
    found = (report.counts["videos"], report.counts["expressions"])
    card = folder / "generator.json"
    if card.is_file():
        arguments = require(read_json(card, "generator card"), "arguments", dict, card, "(top level)")
        stated = require(arguments, "videos", int, card, "arguments")
        if stated != found[0]:
            report.faults.append(f"{card}: made with {stated} videos, found {found[0]}")
        return
    published = PUBLISHED.get((report.dataset, report.set_name))
    if published is not None and published != found:
        report.notes.append(
            f"the published set has {published[0]} videos and {published[1]} expressions, "
            f"this one {found[0]} and {found[1]}"
        )


def _masks(
    report: Report,
    data_dir: Path,
    videos: Sequence[_Video],
    sizes: dict[str, tuple[int, int] | None],
    deep: bool,
) -> None:
    """Check the masks of the split, if it has any; `train` must."""
    path = data_dir / DATASETS[report.dataset].masks.format(split=report.set_name)
    if not path.exists():
        if report.set_name == TRAINING_SPLIT:
            report.faults.append(f"{path}: missing; training needs masks")
        else:
            report.notes.append(f"no masks here ({path} does not exist)")
    elif path.suffix == ".json":
        _rle_masks(report, path, videos, sizes)
    elif DATASETS[report.dataset].listed:
        _object_folders(report, path, videos, deep)
    else:
        _palette_masks(report, path, videos, sizes, deep)


def _rle_masks(
    report: Report, path: Path, videos: Sequence[_Video], sizes: dict[str, tuple[int, int] | None]
) -> None:
    try:
        store = MaskStore(path)
    except InputError as error:
        report.faults.append(str(error))
        return
    owner: dict[str, str] = {}
    count = 0
    for video in tqdm(videos, desc="masks", unit="video", disable=None):
        for record in video.records:
            if not record.anno_ids and not DATASETS[report.dataset].may_be_empty:
                report.faults.append(f"{path}: video {video.name}, expression {record.exp_id}: no anno_id")
        for anno in dict.fromkeys(a for record in video.records for a in record.anno_ids):
            where = f"{path}: annotation {anno} of video {video.name}"
            if owner.setdefault(anno, video.name) != video.name:
                report.faults.append(f"{where} belongs to video {owner[anno]}, too")
            elif anno not in store:
                report.faults.append(f"{where} is missing")
            else:
                count += _one_track(report, RleTrack(store.track(anno), where), video, sizes[video.name])
    report.counts |= {"annotations": len(owner), "masks": count}
    if surplus := sum(anno not in owner for anno in store):
        report.notes.append(f"{surplus} annotations of {path} are named by no expression")


def _one_track(report: Report, track: RleTrack, video: _Video, size: tuple[int, int] | None) -> int:
    """Check one annotation's run-length codes; returns how many are not null. One fault each is enough."""
    if fault := track.fault(video.frames):
        report.faults.append(fault)
        return 0
    count = 0
    for index, name in enumerate(video.frames):
        try:
            mask = track.mask(index, name)
        except InputError as error:
            report.faults.append(str(error))
            break
        count += mask is not None
        if mask is not None and size is not None and mask.shape != size:
            report.faults.append(f"{track.where}, frame {name}: mask of {_by(mask.shape)}, frame of {_by(size)}")
            break
    return count


def _palette_masks(
    report: Report,
    path: Path,
    videos: Sequence[_Video],
    sizes: dict[str, tuple[int, int] | None],
    deep: bool,
) -> None:
    """`<path>/<video>/<frame>.png`, pixels are object ids. The Refer-YouTube-VOS set publishes those of train."""
    count, missing = 0, []
    for video in videos:
        folder, ids = path / video.name, set[int]()
        files = [folder / f"{name}.png" for name in video.frames]
        there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        missing += [file for file in files if file.name not in there]
        for file in (f for f in files if f.name in there):
            count += 1
            if file.stat().st_size == 0:
                report.faults.append(f"{file}: empty file")
            elif deep:
                ids |= _labels(report, file, sizes[video.name])
        wanted = _wanted_objects(report, video)
        if deep and there.issuperset(f.name for f in files) and (absent := sorted(wanted - ids)):
            report.faults.append(f"{folder}: object {absent[0]} of an expression is in no mask")
    report.counts["masks"] = count
    if report.dataset == "davis17" or report.set_name == TRAINING_SPLIT:
        report.faults += [f"{file}: missing" for file in missing]
    elif missing:
        report.notes.append(f"{len(missing)} frames have no mask below {path}, {missing[0]} to begin with")


def _wanted_objects(report: Report, video: _Video) -> set[int]:
    """The objects that the expressions of a video mean; validation files need not say."""
    wanted = set[int]()
    for record in video.records:
        if record.obj_ids or report.set_name == TRAINING_SPLIT:
            try:
                wanted.update(object_numbers(record))
            except InputError as error:
                report.faults.append(str(error))
    return wanted


def _labels(report: Report, file: Path, size: tuple[int, int] | None) -> set[int]:
    """The object ids in a palette mask."""
    try:
        labels = png.read_labels(file)
    except InputError as error:
        report.faults.append(str(error))
        return set()
    if size is not None and labels.shape != size:
        report.faults.append(f"{file}: mask of {_by((labels.shape[0], labels.shape[1]))}, frame of {_by(size)}")
    return set(present_ids(labels))


def _object_folders(report: Report, path: Path, videos: Sequence[_Video], deep: bool) -> None:
    """`<path>/<source>_<video>_<object>/<frame>.png` (reasonvos), binary; the source is not part of a record."""
    folders = [p for p in path.iterdir() if p.is_dir()]
    count = 0
    for video in videos:
        for obj in dict.fromkeys(o for record in video.records for o in record.obj_ids):
            mine = [p for p in folders if p.name.endswith(f"_{video.name}_{obj}")]
            if len(mine) != 1:
                report.faults.append(
                    f"{path}: {len(mine)} folders for object {obj} of video {video.name}, expected 1"
                )
            for file in sorted(p for folder in mine for p in folder.glob("*.png")):
                count += 1
                if deep:
                    try:
                        png.read_mask(file)
                    except InputError as error:
                        report.faults.append(str(error))
    report.counts["masks"] = count


def main(argv: Sequence[str]) -> int:
    """`python -m glus data check`: status 0 without faults, 2 with."""
    parser = argparse.ArgumentParser(
        prog="python -m glus data check",
        description="Verify a data set: counts, files, JSON fields, masks. Status 2 if there are faults.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("dataset", help=", ".join(DATASETS))
    parser.add_argument("--data_dir", "--dataset_dir", default="data", help="folder that holds mevis, ...")
    parser.add_argument("--set_name", help="split; default: train for lvvis, valid_u for mevis, else valid")
    parser.add_argument("--deep", action="store_true", help="decode every frame and mask file")
    parser.add_argument("--all", action="store_true", help="list all faults, not only the first")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes for --deep")
    args = parser.parse_args(argv)
    set_name = args.set_name or {"mevis": "valid_u", "lvvis": "train"}.get(args.dataset, "valid")
    report = check(args.dataset, Path(args.data_dir), set_name, args.deep, args.workers if args.deep else 1)
    sys.stdout.write(report.text(args.all) + "\n")
    return 2 if report.faults else 0
