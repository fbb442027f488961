"""`python -m glus data import`: your own data, COCO or YouTube-VIS into MeViS layout (docs/own_data.md)."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from tqdm import tqdm

from glus.data.check import check
from glus.data.coco import coco_clips
from glus.data.own import Clip, Sentence, Tracks, own_clips
from glus.data.records import FRAME_SUFFIX
from glus.data.synthetic.writer import encode_jpeg
from glus.errors import InputError
from glus.io import disk_errors, safe_name, write_bytes, write_json
from glus.video import Frame, open_frames

logger = logging.getLogger(__name__)

QUALITY = 95
_ORIENTATION = 0x0112  # EXIF tag


def import_clips(clips: Sequence[Clip], out: Path, set_name: str, source: str) -> Path:
    """Write `out`/mevis/<set_name>, which appears when it is complete.

    Raises:
        InputError: the set exists, an import into it is under way, or a fault in the clips.
    """
    safe_name(set_name, out, "--set_name")
    target = out / "mevis" / set_name
    temporary = target.with_name(f".import-{set_name}")
    if target.exists():
        raise InputError(f"{target} exists; choose another --out or --set_name, or delete it")
    if not clips:
        raise InputError(f"{source}: nothing to import, no video has a sentence")
    with disk_errors(target):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
        except FileExistsError:
            raise InputError(
                f"{temporary} exists: another import is writing it, or was killed; delete it if none is running"
            ) from None
        try:
            _write_clips(clips, temporary, source)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _write_clips(clips: Sequence[Clip], folder: Path, source: str) -> None:
    videos: dict[str, Any] = {}
    with_masks = any(clip.masks is not None for clip in clips)
    with open(folder / "mask_dict.json", "w", encoding="utf-8") as masks:
        writer = _MaskWriter(masks)
        for clip in tqdm(clips, desc="import", unit="video", disable=None):
            name = safe_name(clip.name, source, "video name")
            names, originals, size = _write_frames(clip, folder / "JPEGImages" / name)
            tracks = clip.masks(originals, size) if clip.masks is not None else None
            videos[name] = {
                "vid_id": len(videos),
                "frames": names,
                "height": size[0],
                "width": size[1],
                "expressions": _expressions(clip, tracks, writer, source),
            }
        writer.close()
    if not with_masks:
        (folder / "mask_dict.json").unlink()
    write_json(folder / "meta_expressions.json", {"videos": videos}, indent=None)


class _MaskWriter:
    """Writes tracks under running numbers, one by one: all masks of a set need not fit into memory."""

    def __init__(self, handle: TextIO) -> None:
        self.handle = handle
        self.count = 0

    def add(self, track: Sequence[Any]) -> int:
        separator = ",\n" if self.count else "{"
        self.handle.write(f'{separator}"{self.count}": {json.dumps(track)}')
        self.count += 1
        return self.count - 1

    def close(self) -> None:
        self.handle.write("}\n" if self.count else "{}\n")


def _expressions(clip: Clip, tracks: Tracks | None, writer: _MaskWriter, source: str) -> dict[str, Any]:
    """Expressions by running number; only objects that some sentence means are written."""
    if tracks is None:
        return {str(number): {"exp": sentence.text} for number, sentence in enumerate(clip.sentences)}
    numbers: dict[str, int] = {}
    visible = [name for name, track in tracks.items() if any(track)]
    out = {}
    for position, sentence in enumerate(clip.sentences):
        objects = _objects(clip, sentence, visible, tracks, source)
        for name in objects:
            if name not in numbers:
                numbers[name] = writer.add(tracks[name])
        ids = [int(name) if name.isascii() and name.isdigit() else name for name in objects]
        out[str(position)] = {
            "exp": sentence.text,
            "obj_id": ids,
            "anno_id": [numbers[name] for name in objects],
        }
    return out


def _objects(clip: Clip, sentence: Sentence, visible: Sequence[str], tracks: Tracks, source: str) -> Sequence[str]:
    for name in sentence.objects:
        if name not in tracks:
            raise InputError(
                f"{source}: object {name} of {sentence.text!r} has no mask in video {clip.name}; "
                f"there are: {', '.join(tracks) or 'none'}"
            )
    if not (objects := sentence.objects or visible):
        raise InputError(f"{source}: video {clip.name} has no mask for {sentence.text!r}; every mask is empty")
    return objects


def _write_frames(clip: Clip, folder: Path) -> tuple[list[str], list[str], tuple[int, int]]:
    """Write the frames as JPEGs; returns their names, the names they had, and (height, width)."""
    files = clip.frames if isinstance(clip.frames, list) else None
    frames = open_frames(files or clip.frames)
    originals = frames.names * clip.repeat
    # Readers sort names, and masks go by position.
    keep = sorted(set(originals)) == originals
    names = (
        [safe_name(n, folder, "frame") for n in originals] if keep else [f"{i:05d}" for i in range(len(originals))]
    )
    if not keep and clip.repeat == 1:
        logger.info("%s: frames renamed to %s ... to keep their order", clip.name, names[0])
    folder.mkdir(parents=True)
    size = frames[0].shape[:2]
    for index, name in enumerate(names):
        position = index % len(frames)
        data = _jpeg(files[position] if files else None, frames[position])
        write_bytes(folder / f"{safe_name(name, folder, 'frame')}{FRAME_SUFFIX}", data)
    return names, originals, (size[0], size[1])


def _jpeg(file: Path | None, frame: Frame) -> bytes:
    """The bytes of an upright JPEG file as they are, anything else encoded."""
    if file is not None:
        with Image.open(file) as image:
            if image.format == "JPEG" and image.getexif().get(_ORIENTATION, 1) == 1:
                return file.read_bytes()
    return encode_jpeg(frame, QUALITY)


def main(argv: Sequence[str]) -> int:
    """`python -m glus data import`: status 0 when the set that was written has no faults, else 2."""
    parser = argparse.ArgumentParser(
        prog="python -m glus data import",
        description="Write your own data in MeViS layout to OUT/mevis/SET_NAME, and check it. docs/own_data.md "
        "describes the formats.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="data folder")
    parser.add_argument("--set_name", default="train", help="name of the split")
    parser.add_argument(
        "--videos", type=Path, required=True,
        help="folder of frame folders and video files; with --annotations, what its file names start from",
    )  # fmt: skip
    parser.add_argument("--sentences", type=Path, help="CSV or JSON: video, expression, objects")
    parser.add_argument("--masks", type=Path, help="folder of PNGs, or JSON of run-length codes")
    parser.add_argument("--annotations", type=Path, help="COCO or YouTube-VIS JSON, instead of --masks")
    parser.add_argument("--still_frames", type=int, default=4, help="frames that a COCO picture becomes")
    args = parser.parse_args(argv)
    if args.annotations is not None and args.masks is not None:
        parser.error("give --masks or --annotations, not both")
    if args.annotations is None and args.sentences is None:
        parser.error("--sentences is needed without --annotations")
    if args.still_frames < 1:
        parser.error("--still_frames must be at least 1")
    if args.annotations is not None:
        clips = coco_clips(args.annotations, args.videos, args.sentences, args.still_frames)
    else:
        clips = own_clips(args.videos, args.sentences, args.masks)
    folder = import_clips(clips, args.out, args.set_name, str(args.annotations or args.sentences))
    report = check("mevis", args.out, args.set_name)
    sys.stdout.write(f"wrote {folder}\n{report.text()}\n")
    return 2 if report.faults else 0
