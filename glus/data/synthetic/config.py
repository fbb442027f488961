"""What a synthetic video looks like: the arguments of the generator, checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from glus.errors import InputError

GENERATOR_VERSION = 1  # part of every written set; raise it whenever the same arguments give other bytes

MAX_OBJECTS = 8


@dataclass(frozen=True)
class SyntheticConfig:
    """Arguments of the generator.

    Lengths inside a scene are fractions of the shorter side and motions last the whole clip, so a smaller
    picture or a shorter clip shows the same kind of scene.
    """

    width: int = 320
    height: int = 256
    frames: int = 24
    min_objects: int = 3
    max_objects: int = 6
    min_sentences: int = 6
    max_sentences: int = 12
    pan: float = 0.25  # share of the videos with a slow camera pan
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        for name, low, high in (
            ("width", 64, 4096),
            ("height", 64, 4096),
            ("frames", 8, 1000),
            ("min_objects", 3, self.max_objects),
            ("max_objects", 3, MAX_OBJECTS),
            ("min_sentences", 1, self.max_sentences),
            ("max_sentences", 1, 24),
            ("pan", 0, 1),
            ("jpeg_quality", 1, 100),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"--{name} must lie between {low} and {high}, found {value}")

    @property
    def unit(self) -> int:
        """The length that scene measures are fractions of, in pixels."""
        return min(self.width, self.height)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
