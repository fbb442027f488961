"""Training samples made on the fly: no video is ever seen twice, and nothing lies on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from glus.data.sampling import ClipSample, SamplingRules, context_indices, query_indices
from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.sentences import Sentence
from glus.data.synthetic.video import SyntheticVideo, generate_video

DATASET = "synthetic"
TRAINING_SERIES = 1_000_000
"""Series (`seed`) of all training videos; evaluation sets use small seeds, so that none was trained on."""
_VIDEOS = 2**31
NO_SENTENCE = "the object"
"""What the sentence-blind twin reads instead of every expression."""
Reading = Literal["read", "blind"]


def texts(sentences: Sequence[Sentence], reading: Reading) -> list[str]:
    """What is read of each sentence."""
    return [sentence.text if reading == "read" else NO_SENTENCE for sentence in sentences]


def draw_video(rng: np.random.Generator, config: SyntheticConfig, told: bool = True) -> tuple[str, SyntheticVideo]:
    """A training video and its name; `told`: with sentences."""
    index = int(rng.integers(_VIDEOS))
    return f"{TRAINING_SERIES}-{index}", generate_video(TRAINING_SERIES, index, config, told)


@dataclass(frozen=True)
class SyntheticSource:
    """A `SampleSource` of generated videos.

    Attributes:
        config: size and length of the videos, number of sentences.
        rules: frames and expressions of a sample.
        expressions: "blind" replaces every expression by the same words: the control that shows what the sentence
            is worth.
    """

    config: SyntheticConfig = field(default_factory=SyntheticConfig)
    rules: SamplingRules = field(default_factory=SamplingRules)
    expressions: Reading = "read"

    def draw(self, rng: np.random.Generator) -> ClipSample:
        """A sample; everything random comes from `rng`."""
        name, video = draw_video(rng, self.config)
        count = min(self.rules.expressions, len(video.sentences))
        chosen = [int(i) for i in rng.choice(len(video.sentences), count, replace=False)]
        query = query_indices(rng, len(video.frames), self.rules.query_frames)
        context = context_indices(rng, len(video.frames), self.rules.context_frames)
        sentences = [video.sentences[i] for i in chosen]
        return ClipSample(
            dataset=DATASET,
            video=name,
            exp_ids=tuple(map(str, chosen)),
            texts=tuple(texts(sentences, self.expressions)),
            context=tuple(video.frames[i] for i in context),
            query=tuple(video.frames[i] for i in query),
            masks=np.stack([video.target(sentence)[query] for sentence in sentences]).astype(np.uint8),
            frames=tuple(f"{i:05d}" for i in query),
        )
