"""The scoring engine: the scores of the one-by-one schedule, with the least work, the same bits every time."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_clip
from tiny_selector import tiny_selector, tiny_selector_config

from glus.errors import InputError
from glus.inference.budget import MemoryBudget
from glus.inference.queries import Query
from glus.modeling.work import counted
from glus.video import open_frames
from kfs import scoring
from kfs.checkpoints import Selector, load_selector, save_selector
from kfs.frame_scores import FrameScore, best_frame, finite
from kfs.frames import reference_frames, reference_step
from kfs.merging import merge

EXPRESSIONS = ["the red square that moves left", "a blue circle", "What stays behind the wall?"]


@pytest.fixture(scope="module")
def selector() -> Selector:
    return tiny_selector()


def table(schedule: scoring.Schedule, selector: Selector, length: int, texts: list[str], **how: object) -> dict:
    """Scores by (question, frame)."""
    frames, queries = open_frames(tiny_clip(length)), [Query(text) for text in texts]
    found = list(schedule(selector.model, selector.tokenizer, frames, queries, **how))
    scores = {(number, result.frame): result.score for number, result in found}
    assert len(scores) == len(found) == length * len(texts)
    return scores


@pytest.mark.parametrize(
    ("length", "max_images", "count", "seed"),
    [(1, 12, 1, 1), (7, 12, 3, 2), (13, 12, 2, 3), (9, 4, 2, 4), (3, 1, 2, 5)],
)
def test_scores_equal_the_one_by_one_schedule(length: int, max_images: int, count: int, seed: int) -> None:
    selector = tiny_selector(seed)
    ours = table(scoring.score_clip, selector, length, EXPRESSIONS[:count], max_images=max_images)
    wanted = table(scoring.reference_clip, selector, length, EXPRESSIONS[:count], max_images=max_images)
    assert ours.keys() == wanted.keys()
    assert max(abs(ours[key] - wanted[key]) for key in wanted) <= 1e-5
    assert (
        len({round(score, 4) for score in wanted.values()}) > len(wanted) // 2
    )  # there is something to tell apart


def test_work_of_both_schedules(selector: Selector) -> None:
    """Exact counts, by the lengths of the prompts (reference kfs.md, 9.2)."""
    length, more = 14, selector.config.merging.tokens_per_image - 1
    step = reference_step(length)
    questions = [scoring.Question(selector.model, selector.tokenizer, text, length) for text in EXPRESSIONS]
    sizes = [len(reference_frames(length, target)) for target in range(length)]
    with counted(selector.model) as work:
        table(scoring.score_clip, selector, length, EXPRESSIONS)
    opening = questions[0].ids(1).index(-200)
    prefixes = [len(questions[0].parts(size)[0]) + size * more - opening for size in sizes[:step]]
    tails = sum(len(question.parts(size)[1]) for question in questions for size in sizes)
    assert work["llm_positions"] == opening + sum(prefixes) + length * (more + 1) + tails
    assert work["clip_frames"] == length
    assert work["lm_head_positions"] == 0
    with counted(selector.model) as work:
        table(scoring.reference_clip, selector, length, EXPRESSIONS)
    whole = sum(len(question.ids(size)) + (size + 1) * more for question in questions for size in sizes)
    assert work["llm_positions"] == whole
    assert work["clip_frames"] == len(EXPRESSIONS) * sum(size + 1 for size in sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_whatever_else_is_asked(dtype: torch.dtype) -> None:
    selector = tiny_selector()
    selector.model.to(dtype)
    selector.model.finish_loading()
    together = table(scoring.score_clip, selector, 12, EXPRESSIONS)
    assert table(scoring.score_clip, selector, 12, EXPRESSIONS) == together
    for number, text in enumerate(EXPRESSIONS):
        alone = table(scoring.score_clip, selector, 12, [text])
        assert alone == {(0, frame): score for (row, frame), score in together.items() if row == number}


def test_a_frame_has_one_score_in_bf16(selector: Selector) -> None:
    """Defects 20 and 22: no noise, and the head computes in fp32, so distinct frames seldom tie."""
    coarse = tiny_selector()
    coarse.model.to(torch.bfloat16)
    coarse.model.finish_loading()
    scores = table(scoring.score_clip, coarse, 12, EXPRESSIONS[:1])
    assert len(set(scores.values())) == 12
    assert any(torch.tensor(score).bfloat16().item() != score for score in scores.values())
    exact = table(scoring.score_clip, selector, 12, EXPRESSIONS[:1])
    assert max(abs(scores[key] - exact[key]) for key in exact) < 0.1


def test_equal_frames_score_alike_and_the_first_wins(selector: Selector) -> None:
    """Defect 22: a frame has one score, wherever it stands among the references."""
    clip = tiny_clip(6)
    clip[4] = clip[2] = clip[1]
    (scores,) = scoring.score_video(selector.model, selector.tokenizer, open_frames(clip), EXPRESSIONS[:1])
    assert max(abs(scores[1] - scores[2]), abs(scores[1] - scores[4])) < 1e-6 < abs(scores[0] - scores[1])
    assert best_frame([0.5, 0.75, 0.75]) == 1


def test_less_memory_gives_the_same_scores(selector: Selector, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = table(scoring.score_clip, selector, 12, EXPRESSIONS)
    portions: list[int] = []
    begin = selector.model.language.begin

    def noted(embeddings: torch.Tensor, *others: object) -> object:
        portions.append(len(embeddings))
        return begin(embeddings, *others)

    monkeypatch.setattr(selector.model.language, "begin", noted)
    little = table(scoring.score_clip, selector, 12, EXPRESSIONS, budget=MemoryBudget(1))
    assert max(portions) == 1
    assert max(abs(little[key] - wanted[key]) for key in wanted) <= 1e-5
    read, tried = selector.model.language.read, []

    def short(embeddings: torch.Tensor, *others: object, **more: object) -> object:
        tried.append(len(embeddings))
        if len(embeddings) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return read(embeddings, *others, **more)

    monkeypatch.setattr(selector.model.language, "read", short)
    halved = table(scoring.score_clip, selector, 12, EXPRESSIONS)
    assert max(tried) == 6
    assert max(abs(halved[key] - wanted[key]) for key in wanted) <= 1e-5


def test_portions_are_steady() -> None:
    assert [scoring._steady(fitting, 11) for fitting in (1, 2, 3, 7, 8, 10, 11, 900)] == [1, 2, 2, 4, 8, 8, 11, 11]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number(selector: Selector, value: float) -> None:
    """It costs its expression, in whatever order the others come."""
    results = [(row, FrameScore(frame, 0.5)) for row in range(3) for frame in range(4)]
    results[6] = (1, FrameScore(2, value))
    random.Random(1).shuffle(results)
    found = list(finite(results, ["a", "b", "c", "d"]))
    errors = [(row, str(one)) for row, one in found if isinstance(one, InputError)]
    assert [row for row, _ in errors] == [1]
    assert f"frame c is {value}" in errors[0][1]
    assert sum(row != 1 for row, _ in found) == 8


def test_overflowing_weights_are_reported() -> None:
    broken = tiny_selector()
    with torch.no_grad():
        broken.model.score_head[0].weight.fill_(math.inf)
    with pytest.raises(InputError, match=r"the score of frame 0000. is (nan|inf|-inf)"):
        scoring.score_video(broken.model, broken.tokenizer, open_frames(tiny_clip(3)), ["the cat"])


def test_what_cannot_be_asked(selector: Selector) -> None:
    def ask(text: str, count: int = 5, max_images: int = 12) -> scoring.Question:
        return scoring.Question(selector.model, selector.tokenizer, text, count, max_images)

    for text in ("", "the <video>", "a [SCORE]"):
        with pytest.raises(InputError):
            ask(text)
    with pytest.raises(InputError, match="no frames"):
        ask("the cat", count=0)
    with pytest.raises(InputError, match="at least 1, found 0"):
        ask("the cat", max_images=0)
    with pytest.raises(InputError, match="positions of 4096"):
        ask("a very long story " * 600)
    assert tiny_selector_config().language.max_positions == 4096


def test_merging_sums_in_fp32() -> None:
    """Defect 23: in bf16 a sum of hundreds of tokens stops growing, and its order would matter."""
    tokens = (1 + torch.rand(1, 300, 8, generator=torch.Generator().manual_seed(0))).bfloat16()
    index = torch.arange(300)[None] // 299  # all but one in the first cluster
    merged = merge(tokens, index, 2)
    mean = tokens[0, :299].double().mean(dim=0)
    assert (merged[0, 0].double() - mean).abs().max() <= 2**-8  # half a step of bf16 between 1 and 2
    assert torch.equal(merge(tokens, index, 2), merged)
    running = torch.zeros(8, dtype=torch.bfloat16)
    for token in tokens[0, :299]:
        running += token
    assert (running.double() / 299 - mean).abs().max() > 0.1


def test_a_selector_knows_how_many_images_it_takes(selector: Selector, tmp_path: Path) -> None:
    few = tiny_selector()
    few.model.config = replace(few.config, max_images=4)
    save_selector(few, tmp_path / "few")
    loaded = load_selector(tmp_path / "few")
    wanted = table(scoring.score_clip, selector, 9, EXPRESSIONS[:1], max_images=4)
    assert table(scoring.score_clip, loaded, 9, EXPRESSIONS[:1]) == pytest.approx(wanted, abs=1e-5)
    assert table(scoring.score_clip, selector, 9, EXPRESSIONS[:1]) != pytest.approx(wanted, abs=1e-3)
