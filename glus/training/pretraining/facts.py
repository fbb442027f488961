"""What is known of a synthetic video, as numbers: looks, claims, and hints at an object (no torch).

The picture is divided into cells, one per image token of the language model.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from glus.data.synthetic import SyntheticVideo
from glus.data.synthetic.language import Noun
from glus.data.synthetic.predicates import HEADINGS, SOLO, spins
from glus.data.synthetic.relations import RANKINGS, VERSUS
from glus.data.synthetic.shapes import COLOURS, SHAPES, SIZES, TEXTURES

UNKNOWN = -100
"""A look that cannot be told (the size of what grows), or of no object."""
LOOKS: tuple[tuple[str, ...], ...] = (tuple(COLOURS), tuple(SHAPES), TEXTURES, SIZES)
LOOK_COUNT = sum(map(len, LOOKS))
CLAIMS = (*SOLO, "spins")
"""What one object can be said to do, whatever the others do."""
PREDICATES = (
    *("looks", "biggest", "smallest", "together", "nearest", "nearest_end"),
    *(*CLAIMS, *RANKINGS, *VERSUS),
    *(
        form.format(side)
        for form in ("outermost_{}", "on_{}", "{}_of", "ends_on_{}", "ends_{}_of")
        for side in HEADINGS
    ),
)
"""All that a sentence can claim (`glus.data.synthetic.candidates`)."""
SEEN_SHARE = 0.08
"""Share of a cell that an object must cover to count as what the cell shows."""

OUTLINE = 5
"""Parts of a patch, along each side, whose cover by objects the CLIP tower is asked for."""


def hint_size(cells: int) -> int:
    """Length of a hint: the cells, whether there is anything, whether nothing is told, and the looks."""
    return cells + 2 + LOOK_COUNT


def cell_shares(masks: NDArray[np.bool_], side: int) -> NDArray[np.float32]:
    """Masks (N, H, W) -> share of each cell they cover, (N, side, side) in 0..1."""
    shares = [cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) for mask in masks]
    return np.stack(shares)


def looks(video: SyntheticVideo) -> NDArray[np.int64]:
    """(O, 4) colour, shape, texture and size of each object, as indices into `LOOKS`."""
    table = []
    for thing, radius in zip(video.scene.things, video.facts.radius, strict=True):
        names = (thing.colour, thing.shape, thing.texture, thing.size)
        row = [options.index(name) for options, name in zip(LOOKS, names, strict=True)]
        if radius.max() > 1.02 * radius.min():
            row[3] = UNKNOWN
        table.append(row)
    return np.array(table)


def claims(video: SyntheticVideo) -> NDArray[np.float32]:
    """(O, len(CLAIMS)) verdict on each object: 1 true, -1 false, 0 in doubt."""
    table = []
    for number, (thing, track) in enumerate(zip(video.scene.things, video.facts.tracks, strict=True)):
        row = [judge(track) for judge in SOLO.values()]
        table.append([*row, spins(video.facts, number, thing.shape, thing.texture)])
    return np.array(table, np.float32)


def fitting(video: SyntheticVideo, noun: Noun | None) -> list[int]:
    """Objects with the looks a noun names; none without a noun.

    The generator words no noun of a size by which an object of changing size might fit.
    """
    if noun is None:
        return []
    return [
        number
        for number, thing in enumerate(video.scene.things)
        if all(getattr(thing, kind) == value for kind, value in noun.attributes)
    ]


def named(noun: Noun | None) -> list[int]:
    """Colour, shape, texture and size that a noun names, as a row of `looks`; `UNKNOWN` where it names none."""
    said = dict(noun.attributes) if noun else {}
    return [
        options.index(said[kind]) if kind in said else UNKNOWN
        for kind, options in zip(("colour", "shape", "texture", "size"), LOOKS, strict=True)
    ]


def shown(video: SyntheticVideo, frame: int, side: int) -> NDArray[np.int64]:
    """(side * side,) number of the object each cell of a frame shows, -1 for none."""
    shares = cell_shares(video.masks[:, frame], side).reshape(len(video.masks), -1)
    return np.where(shares.max(axis=0) > SEEN_SHARE, shares.argmax(axis=0), -1)


def outlines(video: SyntheticVideo, frame: int, side: int) -> NDArray[np.float32]:
    """(side * side, OUTLINE * OUTLINE) share of each part of each cell that any object covers in a frame."""
    share = cell_shares(np.asarray(video.masks[:, frame].any(axis=0))[None], side * OUTLINE)[0]
    return share.reshape(side, OUTLINE, side, OUTLINE).transpose(0, 2, 1, 3).reshape(side * side, -1)


def paths(video: SyntheticVideo, frames: Sequence[int]) -> NDArray[np.float32]:
    """(O, F, 4) where each object is in some frames: 1 if it is to be seen, its centre x and y in 0..1 of the
    picture, and its size (root of its share of the picture); 0 where it is not."""
    height, width = video.masks.shape[2:]
    out = np.zeros((len(video.masks), len(frames), 4), np.float32)
    for number, frame in itertools.product(range(len(video.masks)), range(len(frames))):
        rows, columns = np.nonzero(video.masks[number, frames[frame]])
        if len(rows):
            centre = ((columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height)
            out[number, frame] = (1, *centre, np.sqrt(len(rows) / (height * width)))
    return out


def per_cell(table: NDArray, owner: NDArray[np.int64], missing: float) -> NDArray:
    """Rows of an object table (O, ...) for each cell (N,), `missing` where it shows none."""
    out = np.full((len(owner), *table.shape[1:]), missing, table.dtype)
    out[owner >= 0] = table[owner[owner >= 0]]
    return out


def hint(
    mask: NDArray[np.bool_], side: int, look: Sequence[int] | NDArray[np.int64] | None
) -> NDArray[np.float32]:
    """What points at an object in a frame: (side^2 + 2 + LOOK_COUNT,).

    The root of each cell's share, which keeps small objects visible; 1 if the mask is not empty; 0 (something is
    told); and its looks, one-hot.

    Args:
        look: row of `looks`; None for several objects, or to keep them back.
    """
    told = np.zeros(2 + LOOK_COUNT, np.float32)
    told[0] = mask.any()
    start = 2
    for options, value in zip(LOOKS, look if look is not None else (UNKNOWN,) * len(LOOKS), strict=True):
        if value != UNKNOWN:
            told[start + value] = 1
        start += len(options)
    return np.concatenate([np.sqrt(cell_shares(mask[None], side)).ravel(), told])


def no_hint(side: int) -> NDArray[np.float32]:
    """Nothing is told: the memory has to answer."""
    out = np.zeros(hint_size(side * side), np.float32)
    out[side * side + 1] = 1
    return out
