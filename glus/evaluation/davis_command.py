"""The commands behind `utils/eval_davis_official.py` and `utils/eval_davis.py --protocol four-annotators`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from glus.errors import InputError
from glus.evaluation.davis import PROTOCOLS, VOS_BENCHMARK, Protocol
from glus.evaluation.davis_results import (
    Dataset,
    davis_truth,
    folder_dataset,
    score_dataset,
    summarise,
    write_csvs,
)
from glus.evaluation.expression_files import Predictions
from glus.evaluation.four_annotators import annotator_datasets, evaluate_four_annotators
from glus.io import disk_errors, safe_name, write_json

FOUR_ANNOTATOR_DIGITS = 5  # the CSVs of the tools for Ref-DAVIS17 carry more digits than the official ones


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every DAVIS protocol."""
    parser.add_argument("--allow_missing", action="store_true", help="score missing predictions as empty")
    parser.add_argument("--allow_extra", action="store_true", help="ignore predictions that the set lacks")
    parser.add_argument("--uint8_decay", action="store_true", help="8-bit decay bins, as the official code")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values, unrounded")
    parser.add_argument("--workers", "-n", "--num_processes", type=int, help="processes (default: one per CPU)")


def official_parser() -> argparse.ArgumentParser:
    """Options of `utils/eval_davis_official.py`."""
    parser = argparse.ArgumentParser(
        description="DAVIS 2017 scores of label maps: official protocols and vos-benchmark's.",
        epilog="Writes the original tool's CSV files. Exit status 2 lists everything wrong with the input.",
    )
    parser.add_argument("--davis_path", type=Path, help="root of a DAVIS 2017 tree")
    parser.add_argument("--set", dest="gt_set", default="val", help="list in ImageSets (default: %(default)s)")
    parser.add_argument("--task", choices=["semi-supervised", "unsupervised"], default="unsupervised")
    parser.add_argument("--results_path", "-m", "--mask", type=Path, required=True, help="predictions")
    parser.add_argument("--protocol", choices=["davis", "vos-benchmark"], default="davis")
    parser.add_argument(
        "--gt", "-g", type=Path, help="ground-truth folder of any data set, instead of --davis_path"
    )
    parser.add_argument("--sequences", help="only these, separated by commas")
    parser.add_argument(
        "--do_not_skip_first_and_last_frame", "-d", action="store_true", help="vos-benchmark: score all frames"
    )
    parser.add_argument(
        "--objects",
        choices=["first-frame", "present"],
        default="first-frame",
        help="davis: ids 1 to the highest of the first frame (official), or only those that occur in it",
    )
    parser.add_argument("--csv_dir", type=Path, help="where the CSV files go (default: the results folder)")
    add_common_arguments(parser)
    return parser


def official_main(argv: Sequence[str]) -> int:
    """Evaluate label maps; returns the exit status.

    Raises:
        InputError: wrong options or input.
    """
    args = official_parser().parse_args(argv)
    protocol = _protocol(args)
    dataset = _dataset(args, protocol)
    scores = summarise(protocol, score_dataset(dataset, args.workers), args.uint8_decay)
    paths = write_csvs(scores, args.csv_dir or args.results_path, args.gt_set)
    if args.json:
        with disk_errors(args.json):
            write_json(args.json, scores.as_json())
    rows = {name: [scores.region[name].mean, scores.boundary[name].mean] for name in scores.region}
    sys.stdout.write(_table(["J-Mean", "F-Mean"], rows))
    sys.stdout.write(_table(list(scores.totals), {protocol.name: list(scores.totals.values())}))
    sys.stdout.write(f"missing predictions scored as empty: {scores.missing}\n" if scores.missing else "")
    sys.stdout.write("".join(f"wrote {path}\n" for path in paths))
    return 0


def _protocol(args: argparse.Namespace) -> Protocol:
    if args.protocol == "vos-benchmark":
        return replace(VOS_BENCHMARK, skip_ends=not args.do_not_skip_first_and_last_frame)
    if args.do_not_skip_first_and_last_frame:
        raise InputError("--do_not_skip_first_and_last_frame belongs to --protocol vos-benchmark")
    return replace(PROTOCOLS[args.task], objects=args.objects)


def _dataset(args: argparse.Namespace, protocol: Protocol) -> Dataset:
    if (args.gt is None) == (args.davis_path is None):
        raise InputError("give --davis_path or --gt")
    truth, names = args.gt, None
    if args.sequences:
        names = [safe_name(name, "--sequences", "name") for name in args.sequences.split(",")]
    if args.gt is None:
        task = "semi-supervised" if protocol.objects == "all" else args.task
        truth, listed = davis_truth(args.davis_path, args.gt_set, task)
        if unknown := sorted(set(names or ()) - set(listed)):
            raise InputError(f"--sequences: not in the set {args.gt_set}: {', '.join(unknown)}")
        names = names or listed
    return folder_dataset(truth, args.results_path, protocol, names, args.allow_missing, args.allow_extra)


def add_four_annotator_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that only the four-annotator protocol of `utils/eval_davis.py` has."""
    parser.add_argument("--davis_path", type=Path, help="four-annotators: root of a DAVIS 2017 tree")
    parser.add_argument("--set", dest="gt_set", default="val", help="four-annotators: list in ImageSets")
    parser.add_argument("--csv_dir", type=Path, help="four-annotators: write anno_<a>/*.csv of the official tool")
    parser.add_argument("--uint8_decay", action="store_true", help="8-bit decay bins, as the official code")


def run_four_annotators(args: argparse.Namespace) -> int:
    """Evaluate Ref-DAVIS17 masks by the four-annotator protocol; returns the exit status.

    Args:
        args: has `mevis_exp_path`, `mevis_pred_path`, `allow_missing`, `json`, `workers` and the options of
            `add_four_annotator_arguments`, and `allow_extra`.

    Raises:
        InputError: wrong options or input.
    """
    if args.davis_path is None:
        raise InputError("--protocol four-annotators needs --davis_path, the root of a DAVIS 2017 tree")
    # Options of the expression-wise protocol; ignoring one would be a silent surprise.
    for name, unused in (("iou_path", None), ("csv", None), ("per_frame", False), ("on_failure", "error")):
        if getattr(args, name) != unused:
            raise InputError(f"--{name} belongs to --protocol expression-wise")
    datasets = annotator_datasets(
        args.davis_path,
        args.mevis_exp_path,
        Predictions(args.mevis_pred_path, args.read_png == "opencv"),
        args.gt_set,
        args.allow_missing,
        args.allow_extra,
    )
    scores = evaluate_four_annotators(datasets, args.workers, args.uint8_decay)
    rows = {f"anno_{a}": list(part.totals.values()) for a, part in enumerate(scores.annotators)}
    if args.csv_dir:
        for name, part in zip(rows, scores.annotators, strict=True):
            with disk_errors(args.csv_dir):
                (args.csv_dir / name).mkdir(parents=True, exist_ok=True)
            write_csvs(part, args.csv_dir / name, args.gt_set, FOUR_ANNOTATOR_DIGITS)
    if args.json:
        with disk_errors(args.json):
            write_json(args.json, scores.as_json())
    sys.stdout.write(_table(list(scores.totals), {**rows, "mean": list(scores.totals.values())}))
    sys.stdout.write(f"missing masks scored as empty: {scores.missing}\n" if scores.missing else "")
    return 0


def _table(columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> str:
    """A table in percent."""
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{c:>10}" for c in columns)]
    lines += [f"{name:<{width}}" + "".join(f"{100 * v:10.2f}" for v in values) for name, values in rows.items()]
    return "\n".join(lines) + "\n\n"
