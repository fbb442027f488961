"""GLUS: language-guided video object segmentation. A video and a sentence in, masks out.

    from glus import GLUS
    model = GLUS.from_pretrained("checkpoints/glus-tiny")
    result = model.segment("clip.mp4", ["the red circle moving left"])

The names load on first use, so that `glus.evaluation` and the data tools start without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glus.api import GLUS, StreamStep
    from glus.config import Behaviour, InferenceConfig
    from glus.errors import InputError
    from glus.inference.result import SegmentResult

_PUBLIC = {
    "GLUS": "glus.api",
    "StreamStep": "glus.api",
    "SegmentResult": "glus.inference.result",
    "Behaviour": "glus.config",
    "InferenceConfig": "glus.config",
    "InputError": "glus.errors",
}

__all__ = ["GLUS", "Behaviour", "InferenceConfig", "InputError", "SegmentResult", "StreamStep"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'glus' has no attribute {name!r}")
