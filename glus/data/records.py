"""The one record type: an expression about a video, with the frames it is asked on. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from glus.errors import InputError

FRAME_SUFFIX = ".jpg"


@dataclass(frozen=True)
class Record:
    """One (video, expression) of a data set; names are checked, files are not (see `missing_files`).

    Attributes:
        dataset: name as in `glus.data.datasets.DATASETS`.
        video: may contain `/` in revos; safe to join to a folder.
        exp_id: as stored in the data set; safe to join to a folder.
        text: the expression as stored, checked but not yet cleaned (`glus.text.prompts.clean_expression`).
        frames: frame names without extension, in the order of the clip; at least one, no two alike.
        frame_folder: where `<frame>.jpg` lie.
        obj_ids: objects meant, in file order; empty where the set does not say.
        anno_ids: keys of their masks in the set's mask file; empty where the set does not say.
    """

    dataset: str
    video: str
    exp_id: str
    text: str
    frames: tuple[str, ...]
    frame_folder: Path
    obj_ids: tuple[str, ...] = ()
    anno_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frames)

    def frame_path(self, index: int) -> Path:
        """Image file of frame `index`."""
        return self.frame_folder / f"{self.frames[index]}{FRAME_SUFFIX}"


def missing_files(records: Iterable[Record]) -> list[Path]:
    """Frame files that do not exist, each once, in order (D6). Every folder is listed once."""
    present: dict[Path, set[str]] = {}
    absent: dict[Path, None] = {}
    for record in records:
        folder = record.frame_folder
        if folder not in present:
            present[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        for name in record.frames:
            if f"{name}{FRAME_SUFFIX}" not in present[folder]:
                absent[folder / f"{name}{FRAME_SUFFIX}"] = None
    return list(absent)


def check_files(dataset: str, records: Iterable[Record]) -> None:
    """Raise an `InputError` unless all frame files of records of a data set are there."""
    if absent := missing_files(records):
        raise InputError(
            f"data set {dataset}: {len(absent)} frame files are missing, {absent[0]} to begin with; "
            f"python -m glus data check {dataset} lists what is wrong"
        )
