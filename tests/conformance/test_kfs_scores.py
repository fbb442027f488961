"""The scoring engine and the whole command against the golden scores (conformance kfs/README.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from kfs_golden import load

from glus.inference.queries import Query
from glus.modeling.work import counted
from glus.text.tokenizer import GlusTokenizer
from glus.video import open_frames
from kfs import scoring
from kfs.frame_scores import best_frame
from kfs.frames import reference_frames, reference_step
from kfs.model import SelectorModel


def test_scores_and_key_frames(kfs_root: Path, kfs_model: SelectorModel, kfs_tokenizer: GlusTokenizer) -> None:
    spec, _ = load(kfs_root, "scores")
    _, arrays = load(kfs_root, "image_tokens")
    wanted = {tuple(Path(item["output"]).parts[-3:]): item["score"] for item in spec["items"]}
    videos = json.loads((kfs_root / "meta_expressions.json").read_text())["videos"]
    ours, plain, keys = {}, {}, {}
    for video, entry in videos.items():
        names, texts = sorted(entry["frames"]), entry["expressions"]
        queries = [Query(expression["exp"]) for expression in texts.values()]
        for found, schedule in ((ours, scoring.score_clip), (plain, scoring.reference_clip)):
            for row, one in schedule(kfs_model, kfs_tokenizer, open_frames(arrays[f"{video}_frames"]), queries):
                found[video, list(texts)[row], f"{names[one.frame]}.json"] = one.score
        for exp_id in texts:
            scores = [ours[video, exp_id, f"{name}.json"] for name in names]
            keys[f"{video}_{exp_id}"] = int(names[best_frame(scores)])
    assert ours.keys() == plain.keys() == wanted.keys()
    assert max(abs(ours[key] - wanted[key]) for key in wanted) <= 5e-5
    assert max(abs(plain[key] - wanted[key]) for key in wanted) <= 5e-5
    assert max(abs(ours[key] - plain[key]) for key in wanted) <= 1e-5
    assert keys == spec["key_frame_json"]


@contextmanager
def made_up_images(kfs_model: SelectorModel) -> Iterator[list[int]]:
    """In place of CLIP, tokens of the right shape: positions are what is counted. Gives the frames encoded."""
    shape = (kfs_model.config.merging.tokens_per_image, kfs_model.config.language.hidden_size)
    counts: list[int] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        counts.append(len(pixels))
        return torch.zeros(len(pixels), *shape)

    kfs_model.encode_clip = encode  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        del kfs_model.__dict__["encode_clip"]


@pytest.mark.parametrize(
    "texts", [["the dog running"], ["the dog running", "the man in red who turns left", "it"]]
)
def test_a_fifth_of_the_positions(
    texts: list[str], kfs_model: SelectorModel, kfs_tokenizer: GlusTokenizer
) -> None:
    """40 frames, LLaMA's tokenizer, 112 tokens per image: counted, against the formulas of kfs.md, 9.2."""
    length, queries = 40, [Query(text) for text in texts]
    tokens = kfs_model.config.merging.tokens_per_image
    frames = open_frames(np.zeros((length, 8, 8, 3), dtype=np.uint8))
    with made_up_images(kfs_model) as encoded, counted(kfs_model) as work:
        for _ in scoring.score_clip(kfs_model, kfs_tokenizer, frames, queries):
            pass
    assert sum(encoded) == length
    step = reference_step(length)
    references = math.ceil(length / step)
    assert (step, references, length % step) == (4, 10, 0)
    prefix = 40 + 4 * (references - 1) + 6 + tokens * references
    questions = [scoring.Question(kfs_model, kfs_tokenizer, text, length) for text in texts]
    opening = questions[0].ids(1).index(-200)
    assert opening == 40
    tails = sum(len(question.parts(references)[1]) for question in questions)
    ours = opening + step * (prefix - opening) + length * tokens + length * tails
    assert work["llm_positions"] == ours
    whole = sum(len(q.ids(references)) + (references + 1) * (tokens - 1) for q in questions)
    assert 5 * ours <= length * whole
    # the formula states the work of the other schedule: one item of each expression
    with made_up_images(kfs_model) as encoded, counted(kfs_model) as work:
        for question in questions:
            shown = reference_frames(length, 7)
            kfs_model.score(
                [question.ids(len(shown))], kfs_model.encode_clip(torch.zeros(len(shown) + 1, 3, 1, 1))
            )
    assert work["llm_positions"] == whole
    assert sum(encoded) == len(texts) * (references + 1)
