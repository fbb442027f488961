"""Scores of all frames of a video for any number of expressions, no work twice (reference kfs.md, 9.2).

Frames fall into residue classes, and a frame is judged among those of its own class: what is made of a class is
needed by no other. So classes are done one after the other, each with its frames through CLIP and merging once.
All prompts of a class begin alike: with the system text, which all classes share, its reference frames, and the
words before the target image. That is read once; each target frame's tokens once behind it; and once behind those
what each expression still says, up to the token before `[SCORE]`.

The frames of a class are batched, expressions are not: a score has the same bits whatever else is asked, so those
of a run that was stopped, or shared out over workers, equal those of one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial

import torch

from glus.data.transforms import clip_image
from glus.errors import InputError
from glus.inference.budget import POSITIONS_AT_ONCE, MemoryBudget, Ration, clip_numbers, window_numbers
from glus.inference.prefetch import ReadAhead
from glus.inference.queries import Query
from glus.modeling.assemble import assemble, upload
from glus.modeling.language import Prefix
from glus.text.tokenizer import IMAGE_INDEX, GlusTokenizer
from glus.video import Frame, FrameSource
from kfs import prompts
from kfs.frame_scores import FrameScore, finite
from kfs.frames import reference_frames, reference_step
from kfs.model import SelectorModel

REMEDY = "use a lower --precision or a lower --max_image_token"


class Question:
    """The prompts of one expression about a video.

    Raises:
        InputError: text that cannot be asked, or a prompt longer than the language model's positions.
    """

    def __init__(
        self, model: SelectorModel, tokenizer: GlusTokenizer, text: str, count: int, max_images: int | None = None
    ) -> None:
        if count < 1:
            raise InputError("the video has no frames")
        self.max_images = model.config.max_images if max_images is None else max_images
        if self.max_images < 1:
            raise InputError(f"the number of images in a prompt must be at least 1, found {self.max_images}")
        self.expression = prompts.clean_expression(prompts.check_expression(text))
        self._tokenizer = tokenizer
        self._score_id = model.score_id
        self._ids: dict[int, list[int]] = {}
        references = len(reference_frames(count, 0, self.max_images))
        limit, per_image = model.config.language.max_positions, model.config.merging.tokens_per_image
        self.longest = len(self.ids(references)) + (references + 1) * (per_image - 1)
        if self.longest > limit:
            raise InputError(
                f"with {references} reference frames the prompt takes {self.longest} positions of {limit}; "
                "shorten the expression or lower --max_image_token"
            )

    def ids(self, references: int) -> list[int]:
        """The whole conversation about so many reference frames."""
        if references not in self._ids:
            text = prompts.conversation(self.expression, references)
            self._ids[references] = self._tokenizer.encode_with_images(text)
        return self._ids[references]

    def parts(self, references: int) -> tuple[list[int], list[int]]:
        """What comes before the target image, alike for all expressions, and what follows up to `[SCORE]`."""
        ids = self.ids(references)
        target = len(ids) - 1 - ids[::-1].index(IMAGE_INDEX)
        return ids[:target], ids[target + 1 : ids.index(self._score_id)]


class Engine:
    """Scores one video.

    Args:
        questions: what is asked about every frame; at least one.
        most: frames of the largest class.
    """

    def __init__(
        self, model: SelectorModel, questions: Sequence[Question], most: int, budget: MemoryBudget | None = None
    ) -> None:
        self.model = model
        self.questions = questions
        budget = budget or MemoryBudget.of_free_memory(model.device)
        item = model.language.embedding.weight.dtype.itemsize
        longest = max(question.longest for question in questions)
        at_once = POSITIONS_AT_ONCE.get(model.device.type, POSITIONS_AT_ONCE["cpu"])
        per_target = item * window_numbers(model.config.language, longest)
        targets = min(budget.holds(per_target), max(1, at_once // model.config.merging.tokens_per_image))
        self._frames = Ration(
            "frame", _steady(budget.holds(item * clip_numbers(model.config.vision)), most), REMEDY
        )
        self._targets = Ration("frame", _steady(targets, most), REMEDY)
        before, _ = questions[0].parts(1)
        self._opening = before[: before.index(IMAGE_INDEX)]
        self._opened: Prefix | None = None

    @torch.inference_mode()
    def score(self, members: Sequence[int], pixels: Sequence[torch.Tensor]) -> list[tuple[int, FrameScore]]:
        """Scores of the frames of a class.

        Args:
            members: their indices, in order.
            pixels: what CLIP is to see of each, (3, S, S).

        Returns:
            Number of the question and score, expression by expression.
        """
        encoded = self._frames.run(pixels, lambda part: self.model.encode_clip(torch.stack(list(part))))
        tokens = torch.cat(encoded)
        prefix = self._read_references(tokens)
        parts = self._targets.run(
            list(tokens), partial(self._read_targets, prefix=prefix, references=len(members))
        )
        rows = torch.cat(parts, dim=1).tolist()
        return [
            (number, FrameScore(frame, value))
            for number, values in enumerate(rows)
            for frame, value in zip(members, values, strict=True)
        ]

    def _read_references(self, tokens: torch.Tensor) -> Prefix:
        language = self.model.language
        before, _ = self.questions[0].parts(len(tokens))
        if self._opened is None:
            _, self._opened = language.begin(self._embedded(self._opening, tokens.dtype)[None])
        rest = assemble([before[len(self._opening) :]], tokens, language.embedding, self.model.score_id)
        return language.begin(rest.embeddings, self._opened)[1]

    def _read_targets(self, tokens: Sequence[torch.Tensor], prefix: Prefix, references: int) -> torch.Tensor:
        """(n, tokens_per_image, H) -> (questions, n) fp32."""
        language = self.model.language
        images = torch.stack(list(tokens))
        count = len(images)
        _, behind = language.begin(images, prefix)
        found = []
        for question in self.questions:
            _, ids = question.parts(references)
            said = self._embedded(ids, images.dtype).expand(count, -1, -1)
            last = upload([len(ids) - 1] * count, images.device)
            found.append(self.model.score_of(language.read(said, behind, last=last)))
        return torch.stack(found)

    def _embedded(self, ids: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """(len(ids), H)"""
        rows: torch.Tensor = self.model.language.embedding(upload(ids, self.model.device))
        return rows.to(dtype)


def _steady(fitting: int, most: int) -> int:
    """All at once if that fits, else the next power of two: memory that varies a little changes no rounding."""
    return most if fitting >= most else int(2 ** math.floor(math.log2(fitting)))


def prepare(model: SelectorModel, image: Frame) -> torch.Tensor:
    """(3, S, S): what CLIP is to see of a frame."""
    return clip_image(image, model.config.vision.image_size, model.config.clip_view)


def score_clip(
    model: SelectorModel,
    tokenizer: GlusTokenizer,
    frames: FrameSource,
    queries: Sequence[Query],
    max_images: int | None = None,
    *,
    budget: MemoryBudget | None = None,
) -> Iterator[tuple[int, FrameScore]]:
    """Score every frame of a video for every query.

    Args:
        max_images: images in a prompt, the target's own included; default: the selector's.
        budget: memory to use beside the model; default a share of what is free.

    Yields:
        Number of the query and a score, residue class by residue class.

    Raises:
        InputError: see `Question`; before any work.
    """
    count = len(frames)
    questions = [Question(model, tokenizer, query.expression, count, max_images) for query in queries]
    if not questions:
        return
    step = reference_step(count, questions[0].max_images)
    classes = [range(first, count, step) for first in range(min(step, count))]
    engine = Engine(model, questions, len(classes[0]), budget)
    order = [frame for members in classes for frame in members]
    at = 0
    with closing(ReadAhead(lambda place: prepare(model, frames[order[place]]), count)) as ahead:
        for members in classes:
            yield from engine.score(members, [ahead[at + n] for n in range(len(members))])
            at += len(members)


@torch.inference_mode()
def reference_clip(
    model: SelectorModel,
    tokenizer: GlusTokenizer,
    frames: FrameSource,
    queries: Sequence[Query],
    max_images: int | None = None,
) -> Iterator[tuple[int, FrameScore]]:
    """`score_clip` as the original does it: one frame for one expression at a time, from decoding to the head.

    Its output matrix at every position and its stored states are not imitated. For tests and the benchmark.
    """
    count = len(frames)
    questions = [Question(model, tokenizer, query.expression, count, max_images) for query in queries]
    for number, question in enumerate(questions):
        for target in range(count):
            shown = reference_frames(count, target, question.max_images)
            pixels = torch.stack([prepare(model, frames[frame]) for frame in (*shown, target)])
            score = model.score([question.ids(len(shown))], model.encode_clip(pixels))
            yield number, FrameScore(target, score.item())


Schedule = Callable[..., Iterator[tuple[int, FrameScore]]]


def score_video(
    model: SelectorModel,
    tokenizer: GlusTokenizer,
    frames: FrameSource,
    expressions: Sequence[str],
    max_images: int | None = None,
    *,
    budget: MemoryBudget | None = None,
) -> list[list[float]]:
    """Scores by expression and frame; arguments as for `score_clip`.

    Raises:
        InputError: an expression that cannot be asked, or a score that is no number.
    """
    table = [[math.nan] * len(frames) for _ in expressions]
    queries = [Query(text) for text in expressions]
    for number, result in finite(
        score_clip(model, tokenizer, frames, queries, max_images, budget=budget), frames.names
    ):
        if isinstance(result, InputError):
            raise result
        table[number][result.frame] = result.score
    return table
