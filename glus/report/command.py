"""`python -m glus report`: which runs, scored how."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glus.data.datasets import DATASETS, expressions_path, load_records
from glus.errors import InputError
from glus.evaluation.all_command import Results, Scoring, score, scorings
from glus.evaluation.expression_commands import mevis_main
from glus.evaluation.expression_files import read_videos
from glus.io import expect, read_json
from glus.overlay import COLOURS
from glus.report.figures import markdown
from glus.report.page import Material, write_report
from glus.report.runs import group, key_of, read_run, read_starts, read_truth


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m glus report",
        description="Compare one or several results folders with the truth and with each other, in one HTML page.",
    )
    p.add_argument("--dataset_dir", default="data", help="folder that holds mevis, Refer-YouTube-VOS, ...")
    p.add_argument("--val_set", default="mevis")
    p.add_argument("--set_name", default="valid_u")
    p.add_argument(
        *("--runs", "--vis_save_path"),
        dest="runs",
        nargs="+",
        action="extend",
        required=True,
        metavar="[NAME=]FOLDER",
        help=f"masks of the runs, at most {len(COLOURS)}; the others are compared with the first",
    )
    p.add_argument(
        "--eval_json",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="what the evaluator wrote with --json --per_frame, one for each run in their order (default: score "
        "them here, if the true masks are there)",
    )
    p.add_argument(
        "--mask_path", type=Path, help="mask_dict.json with the true masks (default: the one of the set)"
    )
    p.add_argument("--key_frames", type=Path, help="key_frame_scores.json of a selector, to show its scores")
    p.add_argument("--out", type=Path, required=True, help="folder for report.html and videos/")
    p.add_argument("--title", default="GLUS report")
    p.add_argument(
        "--limit",
        type=int,
        default=40,
        help="show the first N expressions, and the cases (default: %(default)s); figures are of all",
    )
    p.add_argument(
        "--cases",
        type=int,
        default=4,
        help="best and worst expressions to show of each sort (default: %(default)s)",
    )
    p.add_argument("--workers", type=int, metavar="N", help="processes that score (default: one per CPU)")
    return p


def named_folders(words: Sequence[str]) -> dict[str, Path]:
    """Folders by name, from `NAME=FOLDER` or `FOLDER`, which then is called as its last part.

    Raises:
        InputError: no such folder, two of a name, or more than there are colours for.
    """
    out: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).is_dir():  # a folder's own name may have a = in it
            name, folder = Path(word).absolute().name, word
        if not name or not Path(folder).is_dir():
            raise InputError(f"--runs {word}: no such folder; give FOLDER or NAME=FOLDER")
        if name in out:
            raise InputError(f"--runs: two runs are called {name!r}; give them names: NAME=FOLDER")
        out[name] = Path(folder)
    if len(out) > len(COLOURS):
        raise InputError(f"--runs takes at most {len(COLOURS)} folders, found {len(out)}")
    return out


def evaluated(folder: Path, args: argparse.Namespace) -> Any | None:
    """The evaluator's result for a folder; None where the true masks are not there.

    Raises:
        InputError: the evaluator finds fault with it.
    """
    root = Path(args.dataset_dir)
    if args.mask_path is not None and args.val_set == "mevis":
        files = (expressions_path("mevis", root, args.set_name), args.mask_path, folder)
        names = ("--mevis_exp_path", "--mevis_mask_path", "--mevis_pred_path")
        words = [word for pair in zip(names, map(str, files), strict=True) for word in pair]
        ways = [Scoring("", mevis_main, tuple(words))]
    elif (root / DATASETS[args.val_set].masks.format(split=args.set_name)).exists():
        ways = scorings(Results(folder, args.val_set, args.set_name), root)
    else:
        return None
    options = ["--per_frame", *(["--workers", str(args.workers)] if args.workers is not None else [])]
    try:
        return score(ways[0], options, "error")
    except InputError as error:
        raise InputError(
            f"{folder} cannot be scored: {error}\nOr score it with `python -m glus eval` and give --eval_json"
        ) from None


def material(args: argparse.Namespace) -> Material:
    """Read, and score where no scores are given."""
    folders = named_folders(args.runs)
    files = args.eval_json
    if files is not None and len(files) != len(folders):
        raise InputError(f"--eval_json has {len(files)} files for {len(folders)} runs; give one for each")
    records = load_records(args.val_set, args.dataset_dir, args.set_name)
    by_key = {key_of(record): record for record in records}
    layout = DATASETS[args.val_set]
    videos = read_videos(
        expressions_path(args.val_set, args.dataset_dir, args.set_name), "exp_text" if layout.listed else "exp"
    )
    mask_path = args.mask_path
    own = Path(args.dataset_dir) / layout.masks.format(split=args.set_name)
    if mask_path is None and own.is_file():
        mask_path = own
    truth, starts = read_truth(videos, mask_path), read_starts(args.key_frames)
    runs = []
    for number, (name, folder) in enumerate(folders.items()):
        scored: tuple[Path, Any] | None = None
        if files is not None:
            path = files[number]
            scored = (path, expect(read_json(path, "evaluation result"), dict, path, "(top level)"))
        elif (result := evaluated(folder, args)) is not None:
            scored = (folder, result)
        runs.append(read_run(name, folder, COLOURS[number], scored, by_key))
    return Material(records, runs, truth, group(videos, records), starts)


def main(argv: Sequence[str]) -> int:
    """Write the page; the table by type goes to the screen, too, in Markdown."""
    args = parser().parse_args(argv)
    for name in ("limit", "cases"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, found {getattr(args, name)}")
    found = material(args)
    path = write_report(args.title, found, args.out, args.limit, args.cases)
    sys.stdout.write(f"{markdown(found.runs, found.groups)}report: {path}\n")
    return 0
