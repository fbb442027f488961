"""`python -m glus eval --all RESULTS`: find the results of every data set below a folder, score them, one table.

A results folder is one that `python -m glus infer` has written (it records the data set), or one of masks that is
called `<data set>_<split>`, as `scripts/inference.sh` calls it. The truth lies in the data folder, where training
and inference look, too. Each is scored by its own command of `python -m glus eval`.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glus.data.datasets import DATASETS, expressions_path
from glus.errors import InputError
from glus.evaluation import expression_commands as commands
from glus.evaluation.output import check_places, save_json, table
from glus.io import expect, field, read_json

COLUMNS = ("J", "F", "J&F", "A", "R")  # A and R: ReVOS
FOUR = "four annotators"
SERVER_ONLY = {("mevis", "valid"), ("refyoutube_vos", "valid")}  # their masks are not public


@dataclass(frozen=True)
class Results:
    """A folder of masks and what they are masks of."""

    folder: Path
    dataset: str
    split: str


@dataclass(frozen=True)
class Scoring:
    """One way to score a results folder.

    Attributes:
        protocol: which of several of the data set.
        command: of `glus.evaluation`.
        flags: its options.
        own_files: its options for files as the original tool writes them; here they are thrown away.
    """

    protocol: str
    command: Callable[[Sequence[str]], int]
    flags: tuple[str, ...]
    own_files: tuple[str, ...] = ("--save_name",)


def find_results(root: Path) -> Iterator[Results]:
    """The results folders at and below `root`, in order of their names; what lies inside one is not looked at.

    Raises:
        InputError: `root` is no folder, or a record in it is damaged.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    for place, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = _recorded(Path(place)) or _named(Path(place))
        if found is not None and next(found.folder.rglob("*.png"), None) is not None:
            folders.clear()
            yield found


def _recorded(folder: Path) -> Results | None:
    path = folder / ".glus" / "run.json"
    if not path.is_file():
        return None
    record = expect(read_json(path, "record of the run"), dict, path, "(top level)")
    if "data" not in record or "val_set" not in expect(record["data"], dict, path, "data"):
        return None  # of something else than masks
    names = (field(record["data"], key, str, path, "data") for key in ("val_set", "set_name"))
    return Results(folder, *names)


def _named(folder: Path) -> Results | None:
    for dataset in DATASETS:
        if folder.name.startswith(f"{dataset}_"):
            return Results(folder, dataset, folder.name[len(dataset) + 1 :])
    return None


def scorings(results: Results, data_dir: Path, davis_path: Path | None = None) -> list[Scoring]:
    """How to score `results` with the truth there is; none where only a server has it.

    Args:
        davis_path: root of a DAVIS 2017 tree, for the protocol with four annotators.

    Raises:
        InputError: unknown data set or split, or the truth is not there.
    """
    dataset, split = results.dataset, results.split
    expressions = expressions_path(dataset, data_dir, split)
    layout = DATASETS[dataset]
    masks = data_dir / layout.masks.format(split=split)
    predictions = str(results.folder)
    flags: tuple[str, ...]
    mevis_flags = ("--mevis_exp_path", str(expressions), "--mevis_pred_path", predictions)
    label_flags = ("--meta_exp_path", str(expressions), "--mask_path", str(masks), "--pred_path", predictions)
    if dataset == "davis17":
        codes = data_dir / "DAVIS17" / split / "mask_dict.json"
        out = []
        if codes.is_file():
            out.append(
                Scoring("expressions", commands.davis_main, (*mevis_flags, "--mevis_mask_path", str(codes)))
            )
        elif masks.is_dir():
            out.append(Scoring("expressions", commands.refytvos_main, label_flags, ()))
        if davis_path is not None:
            flags = (*mevis_flags, "--davis_path", str(davis_path), "--protocol", "four-annotators")
            out.append(Scoring(FOUR, commands.davis_main, flags, ()))
        if not out:
            raise InputError(f"{results.folder}: neither {codes} nor {masks} is there; give --davis_path")
        return out
    if not masks.exists():
        if (dataset, split) in SERVER_ONLY:
            return []
        raise InputError(f"{results.folder}: the true masks of {dataset}, {masks}, are not there")
    if dataset == "revos":
        foreground = str(masks.with_name("mask_dict_foreground.json"))
        flags = (
            "--visa_exp_path",
            str(expressions),
            "--visa_mask_path",
            str(masks),
            "--visa_pred_path",
            predictions,
        )
        own = ("--save_json_name", "--save_csv_name")
        return [Scoring("", commands.revos_main, (*flags, "--visa_foreground_mask_path", foreground), own)]
    if dataset == "reasonvos":
        return [Scoring("", commands.reason_vos_main, label_flags)]
    if dataset == "refyoutube_vos":
        return [Scoring("", commands.refytvos_main, label_flags, ())]
    return [Scoring("", commands.mevis_main, (*mevis_flags, "--mevis_mask_path", str(masks)))]


def score(scoring: Scoring, options: Sequence[str], on_failure: str) -> dict[str, Any]:
    """The evaluator's own JSON; its table is not shown.

    Raises:
        InputError: what the evaluator finds wrong.
    """
    with tempfile.TemporaryDirectory() as scrap, redirect_stdout(io.StringIO()):
        own = [word for flag in scoring.own_files for word in (flag, f"{scrap}/{flag[2:]}")]
        if scoring.protocol != FOUR:
            own += ["--on_failure", on_failure]
        path = Path(scrap) / "scores.json"
        scoring.command([*scoring.flags, *options, *own, "--json", str(path)])
        result: dict[str, Any] = read_json(path)
    return result


def parser(prog: str | None) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=prog,
        description="Score the results of every data set found below a folder: those of `python -m glus infer`, "
        "and folders of masks named <data set>_<split>.",
        epilog="Exit status 2: something could not be scored; the rest is.",
    )
    p.add_argument("results", type=Path, help="folder to look in")
    p.add_argument("--data_dir", type=Path, default=Path("data"), help="data sets (default: %(default)s)")
    p.add_argument("--davis_path", type=Path, metavar="DIR", help="DAVIS 2017 tree, for its four annotators")
    p.add_argument(
        "--json", type=Path, metavar="FILE", help="write all scores, unrounded, with what each command says"
    )
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: one per CPU)")
    p.add_argument(
        "--allow_missing", action="store_true", help="score missing masks as empty ones and say how many"
    )
    p.add_argument(
        "--on_failure",
        choices=("error", "zero", "drop", "original"),
        default="error",
        help="expressions with faulty files, see `eval mevis --help`; not for four annotators",
    )
    p.add_argument("--allow_extra", action="store_true", help="ignore masks of frames that are not scored")
    return p


def main(argv: Sequence[str], prog: str | None = None) -> int:
    """Score everything; status 2 if something could not be."""
    args = parser(prog).parse_args(argv)
    check_places(args.json)
    found = list(find_results(args.results))
    if not found:
        raise InputError(
            f"{args.results}: no results in it; these are folders written by `python -m glus infer`, or masks in "
            f"a folder named <data set>_<split>, e.g. mevis_valid_u; data sets: {', '.join(DATASETS)}"
        )
    options = ["--workers", str(args.workers)] if args.workers is not None else []
    options += [f"--{name}" for name in ("allow_missing", "allow_extra") if getattr(args, name)]
    rows = [row for results in found for row in score_results(results, args, options)]
    columns = [name for name in COLUMNS if any(name in row for row in rows)] or list(COLUMNS[:3])
    shown = [(row["name"], [row.get(name) for name in columns]) for row in rows]
    sys.stdout.write(table(shown, columns) + "\n")
    for row in rows:
        if row.get("missing"):
            sys.stdout.write(f"{row['name']}: {row['missing']} missing masks are scored as empty\n")
        if "note" in row:
            sys.stdout.write(f"{row['name']}: {row['note']}\n")
    faults = [row for row in rows if "error" in row]
    for row in faults:
        sys.stderr.write(f"error: {row['name']}: {row['error']}\n")
    if args.json:
        save_json(args.json, {"results": rows})
    return 2 if faults else 0


def score_results(results: Results, args: argparse.Namespace, options: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each protocol of a results folder: scores as fractions, or an `error`, or a `note` why none."""
    inside = results.folder.relative_to(args.results).as_posix()
    name = results.folder.name if inside == "." else inside
    about = {"folder": str(results.folder), "dataset": results.dataset, "split": results.split}
    named = {"name": f"{name} ({results.dataset} {results.split})", **about}
    try:
        ways = scorings(results, args.data_dir, args.davis_path)
    except InputError as error:
        return [{**named, "error": str(error)}]
    if not ways:
        return [
            {**named, "note": "its masks are not public; `python -m glus data submit` writes the zip to hand in"}
        ]
    rows = []
    for way in ways:
        row: dict[str, Any] = dict(named)
        if way.protocol:
            row |= {
                "name": f"{name} ({results.dataset} {results.split}, {way.protocol})",
                "protocol": way.protocol,
            }
        try:
            details = score(way, options, args.on_failure)
        except InputError as error:
            rows.append({**row, "error": str(error)})
            continue
        row |= {column: details[column] for column in COLUMNS if column in details}
        rows.append(
            {**row, "missing": details.get("missing_frames", details.get("missing", 0)), "details": details}
        )
    return rows
