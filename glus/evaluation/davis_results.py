"""DAVIS scores of a whole data set: the folders, the totals, and the files the original tools write.

Source: reference evaluation.md 3.6 and 3.8. Results are always computed afresh; a CSV of an earlier run is
overwritten, never read.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glus.errors import InputError
from glus.evaluation.davis import LabelFolder, Protocol, Sequence, SequenceScores, score_sequence
from glus.evaluation.labels import folder_names
from glus.evaluation.output import save_text
from glus.evaluation.parallel import map_items
from glus.evaluation.statistics import Statistics, dataset_means, statistics
from glus.io import disk_errors, safe_name

logger = logging.getLogger(__name__)

ANNOTATIONS = {"semi-supervised": "Annotations", "unsupervised": "Annotations_unsupervised"}


@dataclass(frozen=True)
class Dataset:
    """The sequences to score, and what is wrong with the folders before any file is opened."""

    sequences: list[Sequence]
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DavisScores:
    """Scores of a data set. `region` and `boundary`: object `<sequence>_<k>` -> statistics of J and F."""

    protocol: Protocol
    sequences: list[SequenceScores]
    region: dict[str, Statistics]
    boundary: dict[str, Statistics]

    @property
    def totals(self) -> dict[str, float]:
        """The columns of the official global CSV, fractions 0..1."""
        return dataset_means(self.region, self.boundary)

    @property
    def missing(self) -> int:
        """Predictions that were missing and counted as empty."""
        return sum(len(s.missing) for s in self.sequences)

    def as_json(self) -> dict[str, Any]:
        """Totals, per-object statistics and per-frame values, unrounded; NaN becomes null."""
        totals = self.totals
        objects = {}
        for sequence in self.sequences:
            for name, scores in zip(object_names(sequence, self.protocol), sequence.objects, strict=True):
                objects[name] = {
                    "label": scores.label,
                    "predicted": scores.predicted,
                    "J": _finite(self.region[name].as_list()),
                    "F": _finite(self.boundary[name].as_list()),
                    "frames": scores.frames,
                    "J_frames": scores.region.tolist(),
                    "F_frames": scores.boundary.tolist(),
                }
        return {
            "protocol": self.protocol.name,
            "objects_are": self.protocol.objects,
            "skip_first_and_last": self.protocol.skip_ends,
            "J": totals["J-Mean"],
            "F": totals["F-Mean"],
            "J&F": totals["J&F-Mean"],
            **dict(zip(totals, _finite(totals.values()), strict=True)),
            "missing": self.missing,
            "objects": objects,
        }


def _finite(values: Iterable[float]) -> list[float | None]:
    return [None if math.isnan(v) else v for v in values]


def object_names(sequence: SequenceScores, protocol: Protocol) -> list[str]:
    """`<sequence>_<k>`: k counts from 1 as in the official code; with other sets of objects it is the id."""
    counted = protocol.objects == "first-frame"
    objects = enumerate(sequence.objects, start=1)
    return [f"{sequence.name}_{k if counted else scores.label}" for k, scores in objects]


def davis_truth(davis_path: Path, gt_set: str, task: str) -> tuple[Path, list[str]]:
    """The annotation folder and the sequences of `ImageSets/<year>/<gt_set>.txt` in a DAVIS 2017 tree.

    Args:
        task: which annotations: `semi-supervised` or `unsupervised`.

    Raises:
        InputError: the list or a folder of the tree is missing, or the list is empty or names no sequence.
    """
    year = "2019" if task == "unsupervised" and gt_set.startswith("test") else "2017"
    listing = davis_path / "ImageSets" / year / f"{safe_name(gt_set, '--set', 'set name')}.txt"
    if not listing.is_file():
        raise InputError(f"{listing}: not found; --davis_path must be the root of a DAVIS 2017 tree")
    names = listing.read_text(encoding="utf-8").split()
    if not names:
        raise InputError(f"{listing}: lists no sequences")
    for name in names:
        safe_name(name, listing, "sequence")
    if len(set(names)) < len(names):
        raise InputError(f"{listing}: lists a sequence twice")
    truth = davis_path / ANNOTATIONS[task] / "480p"
    if not truth.is_dir():
        raise InputError(f"{truth}: no such folder; the {task} task needs it")
    return truth, names


def folder_dataset(
    truth: Path,
    results: Path,
    protocol: Protocol,
    names: list[str] | None = None,
    allow_missing: bool = False,
    allow_extra: bool = False,
    only: list[str] | None = None,
) -> Dataset:
    """Sequences in `<truth>/<name>/<frame>.png`, predicted in `<results>/<name>/<frame>.png`.

    Args:
        names: the sequences; None for all folders of `truth` (or of `truth/Annotations` if that exists).
        only: score these of them, in this order.

    Raises:
        InputError: a folder is missing, or `only` names a sequence that the set lacks.
    """
    if names is None:
        truth = truth / "Annotations" if (truth / "Annotations").is_dir() else truth
        names = folder_names(truth)
    if unknown := sorted(set(only or ()) - set(names)):
        raise InputError(f"--sequences: not in the set: {', '.join(unknown)}")
    faults = []
    if not allow_extra:
        extra = sorted(set(folder_names(results)) - set(names))
        faults = [f"{results / name}: not a sequence of the set" for name in extra]
    sequences = [
        Sequence(
            name,
            LabelFolder(truth / name),
            LabelFolder(results / name),
            protocol,
            allow_missing,
            allow_extra,
        )
        for name in only or names
    ]
    return Dataset(sequences, faults)


def score_dataset(dataset: Dataset, workers: int | None = None, label: str = "DAVIS") -> list[SequenceScores]:
    """Score all sequences, in order.

    Args:
        workers: processes; None for one per processor. The result does not depend on it.

    Raises:
        InputError: anything is missing, surplus, unreadable or does not fit; every fault is listed.
    """
    results = map_items(score_sequence, dataset.sequences, workers, label, unit="sequence")
    faults = list(dataset.faults)
    for sequence, result in zip(dataset.sequences, results, strict=True):
        faults += dict.fromkeys(result.faults + ([] if sequence.allow_missing else result.missing))
        if result.never_seen:
            ids = ", ".join(map(str, result.never_seen))
            logger.warning("%s: first frame lacks ids %s, which are objects all the same", result.name, ids)
        if not result.objects and not result.faults:
            logger.warning("%s: no object to score, left out", result.name)
    raise_faults(faults)
    return results


def summarise(protocol: Protocol, results: list[SequenceScores], uint8_decay: bool = False) -> DavisScores:
    """Statistics of every object.

    Args:
        uint8_decay: see `glus.evaluation.statistics.statistics`.

    Raises:
        InputError: there is no object to score.
    """
    region: dict[str, Statistics] = {}
    boundary: dict[str, Statistics] = {}
    for result in results:
        for name, scores in zip(object_names(result, protocol), result.objects, strict=True):
            region[name] = statistics(scores.region, uint8_decay)
            boundary[name] = statistics(scores.boundary, uint8_decay)
    if not region:
        raise InputError("the ground truth holds no object to score")
    return DavisScores(protocol, results, region, boundary)


def raise_faults(faults: list[str]) -> None:
    """Raise one InputError that lists all `faults`, if there are any."""
    if faults:
        lines = "\n  ".join(faults)
        raise InputError(
            f"nothing was scored, faults: {len(faults)}\n  {lines}\n"
            "(--allow_missing scores what is missing as empty, --allow_extra ignores what is surplus)"
        )


def global_csv(scores: DavisScores, digits: int = 3) -> str:
    """The official `global_results-<set>.csv`."""
    totals = scores.totals
    return f"{','.join(totals)}\n{','.join(f'{v:.{digits}f}' for v in totals.values())}\n"


def per_sequence_csv(scores: DavisScores, digits: int = 3) -> str:
    """The official `per-sequence_results-<set>.csv`: one row per object."""
    rows = [
        f"{name},{j.mean:.{digits}f},{scores.boundary[name].mean:.{digits}f}" for name, j in scores.region.items()
    ]
    return "\n".join(["Sequence,J-Mean,F-Mean", *rows]) + "\n"


def vos_benchmark_csv(scores: DavisScores) -> str:
    """The `results.csv` of vos-benchmark: percent, one decimal."""
    width = max(len("Global score"), *(len(s.name) for s in scores.sequences if s.objects))

    def row(name: str, label: str, j: float, f: float) -> str:
        return f"{name:<{width}},{label:>3},{50 * (j + f):5.1f},{100 * j:5.1f},{100 * f:5.1f}"

    totals = scores.totals
    rows = [f"{'sequence':<{width}},obj,  J&F,    J,    F"]
    rows.append(row("Global score", "", totals["J-Mean"], totals["F-Mean"]))
    for sequence in scores.sequences:
        for name, scored in zip(object_names(sequence, scores.protocol), sequence.objects, strict=True):
            j, f = scores.region[name].mean, scores.boundary[name].mean
            rows.append(row(sequence.name, f"{scored.label:03d}", j, f))
    return "\n".join(rows) + "\n"


def write_csvs(scores: DavisScores, folder: Path, set_name: str, digits: int = 3) -> None:
    """Write the files of the original tool into `folder`."""
    if scores.protocol.objects == "all":
        texts = {"results.csv": vos_benchmark_csv(scores)}
    else:
        texts = {
            f"global_results-{set_name}.csv": global_csv(scores, digits),
            f"per-sequence_results-{set_name}.csv": per_sequence_csv(scores, digits),
        }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        save_text(folder / name, text)
