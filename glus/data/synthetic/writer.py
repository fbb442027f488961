"""Synthetic sets on disk, in MeViS layout (reference glus.md 4.1, 4.2), resumable and byte for byte repeatable."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np

from glus.data.synthetic.config import GENERATOR_VERSION, MAX_OBJECTS, SyntheticConfig
from glus.data.synthetic.source import Reading, texts
from glus.data.synthetic.video import SyntheticVideo, generate_video
from glus.errors import InputError
from glus.evaluation.parallel import default_workers, map_items
from glus.io import atomic_path, disk_errors, read_json, safe_name, write_bytes, write_json
from glus.masks import encode_rle

_PARTS = ".parts"  # what a finished video adds to the JSON files, until all are finished


@dataclass(frozen=True)
class SetArguments:
    """Everything the bytes of a set depend on, besides the generator's version.

    Attributes:
        absent_first: keep only sentences about what the first frame does not show: what key frames are for.
    """

    set_name: str
    videos: int
    seed: int
    config: SyntheticConfig
    expressions: Reading = "read"
    absent_first: bool = False

    def card(self) -> dict[str, Any]:
        """Content of `generator.json`."""
        arguments = {
            "set_name": self.set_name,
            "videos": self.videos,
            "seed": self.seed,
            **asdict(self.config),
            **({} if self.expressions == "read" else {"expressions": self.expressions}),
            **({"absent_first": True} if self.absent_first else {}),
        }
        return {"generator": "glus.data.synthetic", "version": GENERATOR_VERSION, "arguments": arguments}

    def video_name(self, index: int) -> str:
        return f"syn{self.seed}_{index:05d}"


def anno_id(index: int, thing: int) -> int:
    """Key in mask_dict.json; it does not depend on how many objects other videos have."""
    return index * MAX_OBJECTS + thing


def describe(
    video: SyntheticVideo, index: int, reading: Reading = "read", absent_first: bool = False
) -> dict[str, Any]:
    """What a video adds to the JSON files: `video` (meta_expressions), `masks` (mask_dict), `objects`."""
    count, length, height, width = video.masks.shape
    kept = [s for s in video.sentences if not (absent_first and video.target(s)[0].any())]
    told = zip(kept, texts(kept, reading), strict=True)
    expressions = {
        str(number): {
            "exp": text,
            "obj_id": list(sentence.targets),
            "anno_id": [anno_id(index, thing) for thing in sentence.targets],
            "type": sentence.kind,
            "predicate": sentence.predicate,
        }
        for number, (sentence, text) in enumerate(told)
    }
    masks = {
        str(anno_id(index, thing)): [encode_rle(m) if m.any() else None for m in video.masks[thing]]
        for thing in range(count)
    }
    frames = [frame_name(t) for t in range(length)]
    entry = {"vid_id": index, "frames": frames, "height": height, "width": width, "expressions": expressions}
    looks = ("shape", "colour", "texture", "size")
    objects = [
        {"anno_id": anno_id(index, number), **{key: getattr(thing, key) for key in looks}}
        for number, thing in enumerate(video.scene.things)
    ]
    return {"video": entry, "masks": masks, "objects": objects}


def frame_name(index: int) -> str:
    return f"{index:05d}"


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """A frame (uint8 RGB [H, W, 3]) as a JPEG file."""
    done, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError("OpenCV could not encode a JPEG")
    return bytes(data)


def _write_video(folder: Path, arguments: SetArguments, index: int) -> None:
    """Write one video's frames and its part of the JSON files, unless that was done before."""
    name = arguments.video_name(index)
    part, frames = folder / _PARTS / f"{name}.json", folder / "JPEGImages" / name
    if part.is_file():
        return
    video = generate_video(arguments.seed, index, arguments.config)
    temporary = folder / _PARTS / f"{name}-{os.getpid()}"
    for leftover in (temporary, frames):  # frames without their part are from a run that was killed
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir()
    for t, frame in enumerate(video.frames):
        write_bytes(temporary / f"{frame_name(t)}.jpg", encode_jpeg(frame, arguments.config.jpeg_quality))
    temporary.replace(frames)
    write_json(part, describe(video, index, arguments.expressions, arguments.absent_first), indent=None)


def _start(folder: Path, arguments: SetArguments) -> bool:
    """Prepare the folder; True if the set is already complete.

    Raises:
        InputError: the folder holds something else.
    """
    card, parts = folder / "generator.json", folder / _PARTS
    begun = parts / "arguments.json"
    for path in (card, begun):
        if path.is_file() and read_json(path) != arguments.card():
            raise InputError(
                f"{path} says that this set was made with other arguments or another version; "
                "choose another --out or --set_name, or delete that folder"
            )
    if card.is_file():
        shutil.rmtree(parts, ignore_errors=True)
        return True
    if not begun.is_file() and folder.is_dir() and any(p.name != _PARTS for p in folder.iterdir()):
        raise InputError(f"{folder} exists and is not a synthetic set; choose another --out or --set_name")
    (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
    parts.mkdir(exist_ok=True)
    write_json(begun, arguments.card())
    return False


def _finish(folder: Path, arguments: SetArguments) -> None:
    """Join the parts into the set's JSON files; `generator.json` comes last and says that all is complete."""
    videos: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    with atomic_path(folder / "mask_dict.json") as temporary, open(temporary, "w", encoding="utf-8") as masks:
        separator = "{"
        for index in range(arguments.videos):
            name = arguments.video_name(index)
            part = read_json(folder / _PARTS / f"{name}.json")
            videos[name], objects[name] = part["video"], part["objects"]
            for key, track in part["masks"].items():
                masks.write(f"{separator}{json.dumps(key)}: {json.dumps(track)}")
                separator = ",\n"
        masks.write("}\n")
    write_json(folder / "meta_expressions.json", {"videos": videos}, indent=None)
    write_json(folder / "objects.json", objects, indent=None)
    write_json(folder / "generator.json", arguments.card())
    shutil.rmtree(folder / _PARTS)


def write_set(out: str | os.PathLike[str], arguments: SetArguments, workers: int | None = 1) -> Path:
    """Write `out`/mevis/<set_name>; a run that was killed is continued, a complete set is left as it is.

    The set holds JPEGImages, meta_expressions.json (expressions with the extra keys `type` and `predicate`),
    mask_dict.json, objects.json (what each object looks like) and generator.json (version and arguments).

    Args:
        workers: processes; None for one per processor. The bytes do not depend on it.

    Raises:
        InputError: a bad set name or count, a folder with other contents, or a disk that cannot be written.
    """
    safe_name(arguments.set_name, "--set_name", "set name")
    if arguments.videos < 1:
        raise InputError(f"--videos must be at least 1, found {arguments.videos}")
    if arguments.seed < 0:
        raise InputError(f"--seed must not be negative, found {arguments.seed}")
    folder = Path(out) / "mevis" / arguments.set_name
    with disk_errors(folder):
        if not _start(folder, arguments):
            write = partial(_write_video, folder, arguments)
            map_items(write, range(arguments.videos), workers, label=arguments.set_name)
            _finish(folder, arguments)
    return folder


def main(argv: Sequence[str]) -> int:
    """`python -m glus data synthetic`."""
    parser = argparse.ArgumentParser(
        prog="python -m glus data synthetic",
        description="Write a synthetic set of referring videos in MeViS layout. The same arguments give the same "
        "bytes; a run that was interrupted continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", required=True, help="data folder; the set lies in OUT/mevis/SET_NAME")
    parser.add_argument("--set_name", default="valid_u", help="name of the split")
    parser.add_argument("--videos", type=int, required=True, help="how many videos")
    parser.add_argument(
        "--seed", type=int, required=True, help="the series; video i of a series is always the same"
    )
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes")
    for option in fields(SyntheticConfig):
        kind = float if option.name == "pan" else int
        parser.add_argument(f"--{option.name}", type=kind, default=option.default, help=_HELP[option.name])
    parser.add_argument(
        "--expressions",
        choices=get_args(Reading),
        default="read",
        help="blind: the same words for every object, for a model trained so (docs/tiny.md)",
    )
    parser.add_argument(
        "--absent_first",
        action="store_true",
        help="only sentences about what the first frame does not show; some videos are left without any",
    )
    args = parser.parse_args(argv)
    config = SyntheticConfig(**{option.name: getattr(args, option.name) for option in fields(SyntheticConfig)})
    arguments = SetArguments(args.set_name, args.videos, args.seed, config, args.expressions, args.absent_first)
    write_set(args.out, arguments, args.workers)
    return 0


_HELP = {
    "width": "of a frame, in pixels",
    "height": "of a frame, in pixels",
    "frames": "per video",
    "min_objects": "per video",
    "max_objects": "per video",
    "min_sentences": "per video",
    "max_sentences": "per video",
    "pan": "share of videos with a slow camera pan",
    "jpeg_quality": "1 to 100",
}
