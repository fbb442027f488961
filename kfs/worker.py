"""A process of `python -m kfs score`, and what it writes (reference kfs.md, 7.1); see `glus.inference.worker`.

<save>/<video>/<exp_id>/<frame>.json    {"iou": score}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from glus.errors import InputError
from glus.inference.items import Item
from glus.inference.queries import Query
from glus.inference.store import FrameWriter, Store
from glus.inference.worker import Segmenter, main
from glus.inference.writing import BackgroundWriter
from glus.video import FrameSource
from kfs.frame_scores import FrameScore, finite

if TYPE_CHECKING:
    from kfs.checkpoints import Selector


class ScoreWriter(FrameWriter):
    """Writes scores."""

    def take(self, result: FrameScore) -> bool:
        text = json.dumps({"iou": result.score}, allow_nan=False)
        self._put(result.frame, text.encode)
        return False


class ScoreStore(Store):
    """A folder of scores."""

    what = "scores"
    suffix = ".json"

    def writer(self, item: Item, worker: str, background: BackgroundWriter) -> FrameWriter:
        return ScoreWriter(self, item, self.partial(worker) / item.key, background)


def load_selector(settings: Mapping[str, Any]) -> Selector:
    """The selector that `settings` describe (see `score_command.model_settings`)."""
    from glus.api import choose_device, choose_dtype
    from kfs import checkpoints

    device = choose_device(settings["device"])
    return checkpoints.load_selector(
        settings["version"],
        vision=settings["vision_tower"],
        device=device,
        dtype=choose_dtype(settings["precision"], device),
    )


def load_scorer(settings: dict[str, Any]) -> Segmenter:
    """What scores the frames of a video."""
    import torch

    from glus.inference.budget import MemoryBudget
    from kfs import scoring

    torch.set_num_threads(settings["threads"])
    budget = MemoryBudget.of_gib(settings["memory_budget"]) if settings["memory_budget"] else None
    selector = load_selector(settings)
    model, tokenizer, most = selector.model, selector.tokenizer, settings["max_image_token"]
    plain = settings["schedule"] == "reference"
    schedule: scoring.Schedule = scoring.reference_clip if plain else partial(scoring.score_clip, budget=budget)

    def score(frames: FrameSource, queries: Sequence[Query]) -> Iterator[tuple[int, FrameScore | InputError]]:
        good: list[int] = []
        for row, query in enumerate(queries):
            try:
                scoring.Question(model, tokenizer, query.expression, len(frames), most)
                good.append(row)
            except InputError as error:
                yield row, error
        found = schedule(model, tokenizer, frames, [queries[row] for row in good], most)
        for number, result in finite(found, frames.names):
            yield good[number], result

    return score


if __name__ == "__main__":
    sys.exit(main(load_scorer, ScoreStore))
