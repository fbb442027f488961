"""Procedural referring videos: moving objects with look-alikes, and sentences that are true of exactly some.

`generate_video` makes one in memory, `glus.data.synthetic.writer` whole sets in MeViS layout.
"""

from glus.data.synthetic.config import GENERATOR_VERSION, SyntheticConfig
from glus.data.synthetic.sentences import Sentence, sample_sentences, vocabulary
from glus.data.synthetic.video import SyntheticVideo, generate_video

__all__ = [
    "GENERATOR_VERSION",
    "Sentence",
    "SyntheticConfig",
    "SyntheticVideo",
    "generate_video",
    "sample_sentences",
    "vocabulary",
]
