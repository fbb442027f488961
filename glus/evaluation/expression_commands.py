"""The evaluators of expressions (`glus.evaluation.command` lists them); flags as in the original scripts.

Each builds `VideoJob`s from its files; `glus.evaluation.expression_run` does the rest. `prog` is what help and
messages call the command (None: the name of the running script).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from glus.errors import InputError
from glus.evaluation import revos
from glus.evaluation.davis_command import add_four_annotator_arguments, run_four_annotators
from glus.evaluation.expression_files import (
    Entry,
    Predictions,
    Video,
    frame_size,
    id_list,
    mask_tracks,
    read_mask_lists,
    read_videos,
)
from glus.evaluation.expression_run import (
    PRED_HELP,
    make_parser,
    original_scores,
    print_totals,
    save,
    score,
    warn_surplus,
)
from glus.evaluation.expressions import Expression, ForegroundSpec, VideoJob
from glus.evaluation.output import csv_text, save_json, save_text
from glus.evaluation.tracks import PngTrack, RleTrack, Track
from glus.io import field, safe_name

logger = logging.getLogger(__name__)

_DAVIS_OPTIONS = {
    "expression-wise": ("mevis_mask_path", "save_name", "iou_path", "absent", "csv", "per_frame", "on_failure"),
    "four-annotators": ("davis_path", "set", "csv_dir", "uint8_decay"),
}


def _video_key(expression: Expression) -> str:
    return f"{expression.video}_{expression.exp_id}"


def _beside(predictions: Path) -> Path:
    """The folder that holds the predictions, where some of the original tools put their results."""
    return predictions.absolute().parent


def _rle_jobs(
    args: argparse.Namespace,
    exp_path: Path,
    mask_path: Path,
    pred_path: Path,
    annotations: Callable[[Video, Entry], tuple[str, ...]],
    group: Callable[[Entry], int | None] = lambda entry: None,
    foreground: Callable[[Video], ForegroundSpec | None] = lambda video: None,
) -> list[VideoJob]:
    """Jobs of the protocols whose ground truth is a mask dictionary."""
    videos = read_videos(exp_path)
    lists = read_mask_lists(mask_path)
    predictions = Predictions(pred_path, args.read_png == "opencv")
    jobs = []
    for video in videos:
        expressions = []
        for entry in video.entries:
            track, place = predictions.find(video.name, entry.exp_id)
            keys = annotations(video, entry)
            expressions.append(Expression(video.name, entry.exp_id, entry.text, keys, track, place, group(entry)))
        wanted = {key for expression in expressions for key in expression.annotations}
        jobs.append(
            VideoJob(
                video=video.name,
                frames=video.frames,
                expressions=tuple(expressions),
                tracks=mask_tracks(lists, wanted, mask_path),
                masks_name=str(mask_path),
                size=frame_size(video, exp_path),
                foreground=foreground(video),
                allow_missing=args.allow_missing,
                allow_extra=args.allow_extra,
            )
        )
    warn_surplus(predictions, args)
    return jobs


def mevis_main(argv: Sequence[str], prog: str | None = None) -> int:
    """MeViS valid_u (evaluation.md 3.1)."""
    parser = make_parser("J and F on MeViS valid_u.", prog)
    parser.add_argument("--mevis_exp_path", type=Path, metavar="FILE", required=True, help="meta_expressions.json")
    parser.add_argument("--mevis_mask_path", type=Path, metavar="FILE", required=True, help="mask_dict.json")
    parser.add_argument("--mevis_pred_path", type=Path, metavar="PATH", required=True, help=PRED_HELP)
    parser.add_argument(
        "--save_name",
        type=Path,
        metavar="FILE",
        default="mevis_test.json",
        help="[J, F] of each expression (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    exp_path = args.mevis_exp_path
    jobs = _rle_jobs(
        args,
        exp_path,
        args.mevis_mask_path,
        args.mevis_pred_path,
        lambda video, entry: id_list(entry.fields, "anno_id", exp_path, entry.where),
    )
    scored = score("mevis", jobs, args, args.save_name)
    save_json(args.save_name, original_scores(scored, _video_key))
    save("mevis", scored, args)
    print_totals(scored)
    return 0


def davis_main(argv: Sequence[str], prog: str | None = None) -> int:
    """Ref-DAVIS17, expression by expression (evaluation.md 3.2) or by the four-annotator protocol (3.3)."""
    parser = make_parser("J and F on Ref-DAVIS17.", prog)
    parser.add_argument("--mevis_exp_path", type=Path, metavar="FILE", required=True, help="meta_expressions.json")
    parser.add_argument(
        "--mevis_mask_path", type=Path, metavar="FILE", help="mask_dict.json; numbered by sorted video and id"
    )
    parser.add_argument("--mevis_pred_path", type=Path, metavar="PATH", required=True, help=PRED_HELP)
    parser.add_argument(
        "--save_name",
        metavar="FILE",
        default="david17_val.json",
        help="percent totals, beside the predictions (default: %(default)s)",
    )
    parser.add_argument(
        "--protocol",
        choices=("expression-wise", "four-annotators"),
        default="expression-wise",
        help="see docs/evaluation.md (default: %(default)s)",
    )
    add_four_annotator_arguments(parser)
    args = parser.parse_args(argv)
    for protocol, names in _DAVIS_OPTIONS.items():
        for name in names:  # ignoring one would be a silent surprise
            if protocol != args.protocol and getattr(args, name) != parser.get_default(name):
                raise InputError(f"--{name} belongs to --protocol {protocol}")
    if args.protocol == "four-annotators":
        return run_four_annotators(args)
    if args.mevis_mask_path is None:
        raise InputError("--protocol expression-wise needs --mevis_mask_path")
    numbers = davis_numbers(read_videos(args.mevis_exp_path))
    jobs = _rle_jobs(
        args,
        args.mevis_exp_path,
        args.mevis_mask_path,
        args.mevis_pred_path,
        lambda video, entry: (str(numbers[video.name, entry.exp_id]),),
    )
    save_name = _beside(args.mevis_pred_path) / args.save_name
    scored = score("davis", jobs, args, save_name)
    region, boundary = scored.total("J"), scored.total("F")
    totals = {"J": region, "F": boundary, "J&F": (region + boundary) / 2}
    percent = {name: round(100 * value, 2) for name, value in totals.items()}
    save_json(save_name, percent)
    save("davis", scored, args)
    print_totals(scored)
    return 0


def davis_numbers(videos: Iterable[Video]) -> dict[tuple[str, str], int]:
    """Annotation number of each (video, exp_id): a running counter, both sorted as text."""
    pairs = [
        (video.name, exp_id)
        for video in sorted(videos, key=lambda v: v.name)
        for exp_id in sorted(entry.exp_id for entry in video.entries)
    ]
    return {pair: number for number, pair in enumerate(pairs)}


def revos_main(argv: Sequence[str], prog: str | None = None) -> int:
    """ReVOS (evaluation.md 3.4)."""
    parser = make_parser("J, F, accuracy and robustness on ReVOS.", prog)
    parser.add_argument("--visa_exp_path", type=Path, metavar="FILE", required=True, help="meta_expressions JSON")
    parser.add_argument("--visa_mask_path", type=Path, metavar="FILE", required=True, help="mask_dict.json")
    parser.add_argument(
        "--visa_foreground_mask_path", type=Path, metavar="FILE", required=True, help="mask_dict_foreground.json"
    )
    parser.add_argument("--visa_pred_path", type=Path, metavar="PATH", required=True, help=PRED_HELP)
    parser.add_argument(
        "--save_json_name",
        metavar="FILE",
        default="revos_valid.json",
        help="totals, beside the predictions (default: %(default)s)",
    )
    parser.add_argument(
        "--save_csv_name",
        metavar="FILE",
        default="revos_valid.csv",
        help="expressions, beside the predictions (default: %(default)s)",
    )
    revos.add_arguments(parser)
    args = parser.parse_args(argv)
    if not 1 <= args.pixel_value <= 255:
        raise InputError(f"--pixel_value must be 1 to 255, found {args.pixel_value}")
    exp_path, foreground_path = args.visa_exp_path, args.visa_foreground_mask_path
    lists = read_mask_lists(foreground_path, "foreground mask file")

    def foreground(video: Video) -> ForegroundSpec:
        track = None
        if video.name in lists:
            masks = field(lists[video.name], "masks_rle", list, foreground_path, video.name)
            track = RleTrack(masks, f"{foreground_path}: {video.name}")
        return ForegroundSpec(track, args.robustness, args.pixel_value)

    jobs = _rle_jobs(
        args,
        exp_path,
        args.visa_mask_path,
        args.visa_pred_path,
        lambda video, entry: id_list(entry.fields, "anno_id", exp_path, entry.where),
        lambda entry: int(field(entry.fields, "type_id", int, exp_path, entry.where)),
        foreground,
    )
    beside = _beside(args.visa_pred_path)
    save_json_name, save_csv_name = beside / args.save_json_name, beside / args.save_csv_name
    scored = score("revos", jobs, args, save_json_name, save_csv_name)
    unrounded = revos.group_results(scored, "none")
    shown = revos.group_results(scored, args.rounding)
    save_json(save_json_name, shown)
    save_text(save_csv_name, csv_text(revos.CSV_COLUMNS, revos.csv_rows(scored)))
    save("revos", scored, args, revos.json_fields(unrounded, args))
    sys.stdout.write(revos.text(shown, args) + "\n")
    return 0


def reason_vos_main(argv: Sequence[str], prog: str | None = None) -> int:
    """ReasonVOS (evaluation.md 3.5)."""
    parser = make_parser("J and F on ReasonVOS.", prog)
    parser.add_argument("--meta_exp_path", type=Path, metavar="FILE", required=True, help="meta_expressions.json")
    parser.add_argument(
        "--mask_path", type=Path, metavar="DIR", required=True, help="folder of <source>_<video>_<obj_id>"
    )
    parser.add_argument("--pred_path", type=Path, metavar="PATH", required=True, help=PRED_HELP)
    parser.add_argument(
        "--save_name",
        type=Path,
        metavar="FILE",
        default="./reasonvos",
        help="[J, F] of each expression (default: %(default)s)",
    )
    parser.add_argument(
        "--pred_layout",
        choices=("video", "object"),
        default="video",
        help="folders <video>/<exp_id> (default), or <source>_<video>_<obj_id>/<exp_id> (VideoLISA)",
    )
    parser.add_argument(
        "--exp_folder",
        choices=("id", "position"),
        default="id",
        help="folders named by exp_id (default), or by the position in the list (original GLUS inference)",
    )
    args = parser.parse_args(argv)
    keys: dict[tuple[str, str], str] = {}
    jobs = list(_reason_vos_jobs(args, keys))
    scored = score("reason_vos", jobs, args, args.save_name)
    values = original_scores(scored, lambda e: keys[e.video, e.exp_id])
    save_json(args.save_name, values)
    save("reason_vos", scored, args)
    print_totals(scored)
    return 0


def _reason_vos_jobs(args: argparse.Namespace, keys: dict[tuple[str, str], str]) -> Iterable[VideoJob]:
    """One job per annotated object; fills `keys` with the original's name of each expression."""
    path = args.meta_exp_path
    if not args.mask_path.is_dir():
        raise InputError(f"{args.mask_path}: no such folder")
    predictions = Predictions(args.pred_path, args.read_png == "opencv")
    for video in read_videos(path, "exp_text"):
        source = safe_name(field(video.fields, "source", str, path, video.where), path, f"{video.where}.source")
        by_object: dict[str, list[Expression]] = {}
        for position, entry in enumerate(video.entries):
            obj = str(field(entry.fields, "obj_id", (int, str), path, entry.where))
            name = f"{source}_{video.name}_{safe_name(obj, path, f'{entry.where}.obj_id')}"
            keys[video.name, entry.exp_id] = f"{name}_{entry.exp_id}"
            track, place = predictions.find(
                name if args.pred_layout == "object" else video.name,
                str(position) if args.exp_folder == "position" else entry.exp_id,
            )
            one = Expression(video.name, entry.exp_id, entry.text, (name,), track, place)
            by_object.setdefault(name, []).append(one)
        for name, expressions in by_object.items():
            folder = args.mask_path / name
            truth = PngTrack(folder, args.read_png == "opencv")
            yield VideoJob(
                video=video.name,
                frames=tuple(truth.names()) or video.frames,
                expressions=tuple(expressions),
                tracks={name: truth},
                masks_name=str(args.mask_path),
                allow_missing=args.allow_missing,
                allow_extra=args.allow_extra,
                known_frames=frozenset(video.frames),
            )
    warn_surplus(predictions, args)


def refytvos_main(argv: Sequence[str], prog: str | None = None) -> int:
    """Ref-YouTube-VOS with local masks: `<mask_path>/<video>/<frame>.png` label maps (evaluation.md 2.1, 4)."""
    parser = make_parser("J and F on Ref-YouTube-VOS, or any set of that layout, with local label maps.", prog)
    parser.add_argument(
        "--meta_exp_path", type=Path, required=True, metavar="FILE", help="meta_expressions.json with obj_id"
    )
    parser.add_argument("--mask_path", type=Path, metavar="DIR", required=True, help="folder Annotations")
    parser.add_argument("--pred_path", type=Path, metavar="PATH", required=True, help=PRED_HELP)
    parser.add_argument(
        "--only_annotated", action="store_true", help="score only the frames that have a label map (else: a fault)"
    )
    args = parser.parse_args(argv)
    scored = score("refytvos", list(_refytvos_jobs(args)), args)
    save("refytvos", scored, args, {"only_annotated": args.only_annotated})
    print_totals(scored)
    return 0


def _refytvos_jobs(args: argparse.Namespace) -> Iterable[VideoJob]:
    path = args.meta_exp_path
    if not args.mask_path.is_dir():
        raise InputError(f"{args.mask_path}: no such folder")
    predictions = Predictions(args.pred_path, args.read_png == "opencv")
    for video in read_videos(path):
        folder = args.mask_path / video.name
        annotated = set(PngTrack(folder).names())
        frames = tuple(name for name in video.frames if name in annotated)
        if args.only_annotated and not frames:
            raise InputError(f"{folder}: no label map of any frame of {video.where}")
        if not args.only_annotated and len(frames) < len(video.frames):
            lacking = f"{len(video.frames) - len(frames)} of {len(video.frames)} frames have no label map"
            logger.warning("%s: %s; --only_annotated scores the others", folder, lacking)
            frames = video.frames
        expressions = []
        tracks: dict[str, Track] = {}
        for entry in video.entries:
            ids = id_list(entry.fields, "obj_id", path, entry.where)
            for one in ids:
                if not one.isdecimal() or not 1 <= int(one) <= 255:
                    raise InputError(f"{path}: {entry.where}.obj_id must be 1 to 255, found {one!r}")
                tracks[one] = PngTrack(folder, label=int(one))
            track, place = predictions.find(video.name, entry.exp_id)
            expressions.append(Expression(video.name, entry.exp_id, entry.text, ids, track, place))
        yield VideoJob(
            video=video.name,
            frames=frames,
            expressions=tuple(expressions),
            tracks=tracks,
            masks_name=str(args.mask_path),
            allow_missing=args.allow_missing,
            allow_extra=args.allow_extra,
            known_frames=frozenset(video.frames),
        )
    warn_surplus(predictions, args)
