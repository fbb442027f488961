"""Declarative tables of checkpoint key names, foreign <-> ours.

A pattern is a key with `*` for one dotted part and `**` for the rest of the key. The first matching line wins;
`None` on the right means "dropped on purpose". Sources: reference glus.md, section 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from glus.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class KeyTable:
    """Lines (foreign pattern, own pattern or None)."""

    name: str
    lines: tuple[tuple[str, str | None], ...]

    def to_own(self, key: str) -> str | None:
        """Own name of a foreign key, None if it is dropped on purpose.

        Raises:
            KeyError: no line knows the key.
        """
        for foreign, own in self.lines:
            match = _pattern(foreign).fullmatch(key)
            if match:
                return None if own is None else _fill(own, match.groups())
        raise KeyError(key)

    def to_foreign(self, key: str) -> str:
        """Foreign name of one of our keys.

        Raises:
            KeyError: the layout has no place for the key.
        """
        for foreign, own in self.lines:
            match = _pattern(own).fullmatch(key) if own is not None else None
            if match:
                return _fill(foreign, match.groups())
        raise KeyError(key)

    def rename(self, state: Mapping[str, T], source: str) -> dict[str, T]:
        """A foreign state under our names.

        Raises:
            InputError: a key that no line knows; every key is consumed or dropped on purpose.
        """
        renamed: dict[str, T] = {}
        unknown = []
        for key, value in state.items():
            try:
                own = self.to_own(key)
            except KeyError:
                unknown.append(key)
                continue
            if own is not None:
                renamed[own] = value
        if unknown:
            raise InputError(f"{source}: {name_some(unknown)} not part of the {self.name} layout")
        return renamed


def _pattern(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\*\*", "(.+)").replace(r"\*", "([^.]+)")
    return re.compile(escaped)


def _fill(pattern: str, groups: tuple[str, ...]) -> str:
    parts = iter(groups)
    return re.sub(r"\*\*|\*", lambda _: next(parts), pattern)


def name_some(keys: Iterable[str], limit: int = 5) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{', '.join(keys[:limit])}{more}"


LLAMA_AND_PROJECTOR: tuple[tuple[str, str | None], ...] = (
    ("lm_head.weight", "language.lm_head.weight"),
    ("model.embed_tokens.weight", "language.decoder.embed_tokens.weight"),
    ("model.norm.weight", "language.decoder.norm.weight"),
    ("model.layers.*.self_attn.rotary_emb.inv_freq", None),  # recomputed in fp32; the file holds bf16 copies
    ("model.layers.**", "language.decoder.layers.**"),
    ("model.mm_projector.*", "vision.projector.*"),
)

RELEASED = KeyTable(
    "released GLUS",
    (
        *LLAMA_AND_PROJECTOR,
        ("model.text_hidden_fcs.0.*.*", "seg_head.*.*"),
        ("model.visual_model.**", "sam.**"),
        ("model.vision_tower.vision_tower.vision_model.**", "vision.tower.**"),
    ),
)
"""A released GLUS directory (2.4) and, with the last line, the training-time model."""

LISA = KeyTable(
    "LISA-7B-v1",
    (
        *LLAMA_AND_PROJECTOR,
        ("model.text_hidden_fcs.**", None),  # rebuilt at training start (D27)
        ("model.visual_model.image_encoder.**", None),  # SAM v1, replaced by SAM-2
        ("model.visual_model.prompt_encoder.**", None),
        ("model.visual_model.mask_decoder.**", None),
    ),
)
"""LISA-7B-v1 (2.1), the starting point of training."""

SAM2 = KeyTable("SAM-2", (("**", "sam.**"),))
"""`sam2_hiera_*.pt` (2.3)."""

CLIP = KeyTable(
    "CLIP",
    (
        ("vision_model.embeddings.position_ids", None),
        ("vision_model.**", "vision.tower.**"),
        ("text_model.**", None),
        ("text_projection.weight", None),
        ("visual_projection.weight", None),
        ("logit_scale", None),
    ),
)
"""`openai/clip-vit-large-patch14` as published on the hub: only its vision tower is used."""
