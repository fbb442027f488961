"""The commands `eval davis-official` and `eval davis --protocol four-annotators`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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
from glus.evaluation.output import check_places, save_json, table
from glus.io import safe_name

FOUR_ANNOTATOR_DIGITS = 5  # the CSVs of the tools for Ref-DAVIS17 carry more digits than the official ones


def official_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Options of `eval davis-official`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="DAVIS 2017 scores of label maps: official protocols and vos-benchmark's.",
        epilog="Writes the original tool's CSV files. Exit status 2: bad input; every fault is listed.",
    )
    add = parser.add_argument
    add("--davis_path", type=Path, metavar="DIR", help="root of a DAVIS 2017 tree")
    add("--gt", "-g", type=Path, metavar="DIR", help="ground truth of any data set, instead of --davis_path")
    add("--results_path", "-m", "--mask", type=Path, metavar="DIR", required=True, help="<sequence>/<frame>.png")
    add("--set", dest="gt_set", default="val", metavar="NAME", help="list in ImageSets (default: %(default)s)")
    add("--sequences", metavar="NAMES", help="only these, separated by commas")
    add(
        "--task",
        choices=["semi-supervised", "unsupervised"],
        default="unsupervised",
        help="davis: ids are objects, or proposals to be matched (default: %(default)s)",
    )
    add("--protocol", choices=["davis", "vos-benchmark"], default="davis", help="(default: %(default)s)")
    add("--do_not_skip_first_and_last_frame", "-d", action="store_true", help="vos-benchmark: score all frames")
    add(
        "--objects",
        choices=["first-frame", "present"],
        default="first-frame",
        help="davis: ids 1 to the highest of the first frame (default), or only those that occur in it",
    )
    add("--csv_dir", type=Path, metavar="DIR", help="where the CSV files go (default: the results folder)")
    add("--json", type=Path, metavar="FILE", help="write all values as fractions, unrounded")
    add("--workers", "-n", "--num_processes", type=int, metavar="N", help="processes (default: one per CPU)")
    add("--allow_missing", action="store_true", help="score missing predictions as empty ones and say how many")
    add("--allow_extra", action="store_true", help="ignore predictions of frames or sequences that are not scored")
    add("--uint8_decay", action="store_true", help="8-bit decay bins, as the official code")
    return parser


def official_main(argv: Sequence[str], prog: str | None = None) -> int:
    """Evaluate label maps; returns the exit status.

    Raises:
        InputError: wrong options or input.
    """
    args = official_parser(prog).parse_args(argv)
    protocol = _protocol(args)
    dataset = _dataset(args, protocol)
    check_places(args.json)
    scores = summarise(protocol, score_dataset(dataset, args.workers), args.uint8_decay)
    write_csvs(scores, args.csv_dir or args.results_path, args.gt_set)
    if args.json:
        save_json(args.json, scores.as_json())
    rows = [(name, [j.mean, scores.boundary[name].mean]) for name, j in scores.region.items()]
    sys.stdout.write(table(rows, ["J-Mean", "F-Mean"]) + "\n\n")
    sys.stdout.write(table([(protocol.name, list(scores.totals.values()))], list(scores.totals)) + "\n")
    sys.stdout.write(f"missing predictions scored as empty: {scores.missing}\n" if scores.missing else "")
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
    truth, names, only = args.gt, None, None
    if args.sequences:
        only = [safe_name(name, "--sequences", "name") for name in args.sequences.split(",")]
    if args.gt is None:
        task = "semi-supervised" if protocol.objects == "all" else args.task
        truth, names = davis_truth(args.davis_path, args.gt_set, task)
    return folder_dataset(truth, args.results_path, protocol, names, args.allow_missing, args.allow_extra, only)


def add_four_annotator_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that only the four-annotator protocol of `eval davis` has."""
    add = parser.add_argument_group("options of --protocol four-annotators").add_argument
    add("--davis_path", type=Path, metavar="DIR", help="root of a DAVIS 2017 tree")
    add("--set", default="val", metavar="NAME", help="list in ImageSets (default: %(default)s)")
    add("--csv_dir", type=Path, metavar="DIR", help="write anno_<a>/*.csv of the official tool")
    add("--uint8_decay", action="store_true", help="8-bit decay bins, as the official code")


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
    check_places(args.json)
    datasets = annotator_datasets(
        args.davis_path,
        args.mevis_exp_path,
        Predictions(args.mevis_pred_path, args.read_png == "opencv"),
        args.set,
        args.allow_missing,
        args.allow_extra,
    )
    scores = evaluate_four_annotators(datasets, args.workers, args.uint8_decay)
    rows = [(f"anno_{a}", list(part.totals.values())) for a, part in enumerate(scores.annotators)]
    if args.csv_dir:
        for (name, _), part in zip(rows, scores.annotators, strict=True):
            write_csvs(part, args.csv_dir / name, args.set, FOUR_ANNOTATOR_DIGITS)
    if args.json:
        save_json(args.json, scores.as_json())
    rows.append(("mean", list(scores.totals.values())))
    sys.stdout.write(table(rows, list(scores.totals)) + "\n")
    sys.stdout.write(f"missing masks scored as empty: {scores.missing}\n" if scores.missing else "")
    return 0
