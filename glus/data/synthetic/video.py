"""One synthetic referring video in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glus.data.synthetic.candidates import survey
from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.dice import Dice
from glus.data.synthetic.facts import Facts, measure
from glus.data.synthetic.render import cover, paint
from glus.data.synthetic.scene import Scene, build_scene
from glus.data.synthetic.sentences import Sentence, choose
from glus.errors import InputError

_ATTEMPTS = 500


@dataclass(frozen=True)
class SyntheticVideo:
    """A video with its objects and sentences.

    frames: uint8 RGB [T, H, W, 3]. masks: bool [O, T, H, W], the visible part of each object; masks of different
    objects never overlap. sentences: each names objects by their index in `masks`. scene: the simulation; facts:
    what a viewer can see in it.
    """

    frames: np.ndarray
    masks: np.ndarray
    sentences: list[Sentence]
    scene: Scene
    facts: Facts

    def target(self, sentence: Sentence) -> np.ndarray:
        """bool [T, H, W]: the union of the masks a sentence names."""
        return np.asarray(self.masks[list(sentence.targets)].any(axis=0))


def generate_video(
    seed: int, index: int, config: SyntheticConfig | None = None, told: bool = True
) -> SyntheticVideo:
    """The video number `index` of the series `seed` (both >= 0): the same arguments give the same bytes.

    Args:
        told: False leaves out the sentences, which saves half of the time.

    Raises:
        InputError: the arguments leave no room for a scene (for example eight objects in a sliver).
    """
    if seed < 0 or index < 0:
        raise InputError(f"seed and index must not be negative, found {seed} and {index}")
    config = config or SyntheticConfig()
    for attempt in range(_ATTEMPTS):
        dice = Dice(seed, index, attempt)
        scene = build_scene(config, dice)
        if scene is None:
            continue
        coverage = cover(scene)
        facts = measure(scene, coverage)
        if facts is None:
            continue
        sentences = choose(config, dice, survey(scene.things, facts)) if told else []
        if sentences is not None:
            return SyntheticVideo(paint(scene, coverage, dice), coverage.masks(), sentences, scene, facts)
    raise InputError(
        f"no scene found for video {index} of seed {seed} after {_ATTEMPTS} attempts; use fewer objects, "
        "a picture nearer to a square, or a lower --min_sentences"
    )
