"""A second opinion on the synthetic sentences, from the written files alone.

It shares no code with the generator: nouns are read from the sentence's words, positions are centroids of the
decoded masks (pycocotools), claims have their own plain definitions with thresholds in the middle between the
generator's margins. `None` means that the masks do not tell (too much of the object is hidden).
"""

from __future__ import annotations

import itertools
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

WORDS = {"large": "big", "little": "small", "spotted": "dotted"}
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
SIDES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "top": (0, -1), "bottom": (0, 1)}


@dataclass
class Seen:
    """One object's masks: area [T], centre [T, 2] and box [T, 4] in units of the shorter side (nan: not seen)."""

    looks: dict[str, str]
    masks: np.ndarray
    area: np.ndarray
    centre: np.ndarray
    box: np.ndarray

    @property
    def clean(self) -> np.ndarray:
        """Frames in which nothing of it is hidden (rotation changes the pixel count a little)."""
        return self.area >= 0.94 * self.area.max()

    @property
    def path(self) -> np.ndarray:
        return self.centre[self.clean]


@dataclass
class Clip:
    width: float
    height: float
    objects: dict[int, Seen]
    expressions: dict[str, dict[str, Any]]


def load(folder: Path) -> dict[str, Clip]:
    meta = json.loads((folder / "meta_expressions.json").read_text())["videos"]
    masks = json.loads((folder / "mask_dict.json").read_text())
    looks = json.loads((folder / "objects.json").read_text())
    clips = {}
    for video, entry in meta.items():
        height, width = entry["height"], entry["width"]
        unit = min(height, width)
        objects = {}
        for thing in looks[video]:
            track = masks[str(thing["anno_id"])]
            assert len(track) == len(entry["frames"])
            stack = np.zeros((len(track), height, width), bool)
            for t, rle in enumerate(track):
                if rle is not None:
                    assert rle["size"] == [height, width]
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools with numpy 2
                        stack[t] = coco.decode(rle)
            objects[thing["anno_id"]] = _seen(thing, stack, unit)
        clips[video] = Clip(width / unit, height / unit, objects, entry["expressions"])
    return clips


def _seen(looks: dict[str, str], masks: np.ndarray, unit: int) -> Seen:
    area = masks.sum(axis=(1, 2))
    centre, box = np.full((len(masks), 2), np.nan), np.full((len(masks), 4), np.nan)
    for t in np.flatnonzero(area):
        rows, columns = np.nonzero(masks[t])
        centre[t] = columns.mean() / unit, rows.mean() / unit
        box[t] = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / unit
    return Seen(looks, masks, area, centre, box)


def members(clip: Clip, phrase: str) -> list[int]:
    """Annotations that fit the attribute words of a noun phrase."""
    words = [WORDS.get(w, w) for w in phrase.split()]
    words = [w[:-2] if w == "crosses" else w[:-1] if w.endswith("s") and w != "cross" else w for w in words]
    values = {v for seen in clip.objects.values() for k, v in seen.looks.items() if k != "anno_id"}
    values |= {"big", "small"}
    wanted = [w for w in words if w in values]
    return [a for a, seen in clip.objects.items() if all(w in seen.looks.values() for w in wanted)]


def split(text: str) -> tuple[str, str]:
    """(subject, rest) of a sentence; the rest starts at the first word that is no part of a noun phrase."""
    noun_words = {
        "the",
        "all",
        *COUNTS,
        *WORDS,
        "big",
        "small",
        "plain",
        "striped",
        "dotted",
        "biggest",
        "largest",
    }
    noun_words |= {"smallest", "leftmost", "rightmost", "topmost", "highest", "bottommost", "lowest"}
    colours = {"red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black"}
    nouns = {"object", "one", "shape", "thing", "circle", "square", "triangle", "star", "ring", "pentagon"}
    nouns |= {"cross", "heart"}
    words = text.split()
    for position, word in enumerate(words):
        if word in nouns or word.removesuffix("s") in nouns or word == "crosses":
            return " ".join(words[: position + 1]), " ".join(words[position + 1 :])
        assert word in noun_words | colours, f"{word!r} in {text!r}"
    raise AssertionError(text)


def second(clip: Clip, rest: str) -> int | None:
    """The annotation of the second object of a sentence; it must be one."""
    if " the " not in f" {rest} ":
        return None
    parts = f" {rest}".split(" the ")
    for part in parts[1:]:
        if part.split()[0] in ("left", "right", "top", "bottom", "edge", "border", "frame", "picture", "start",
                               "others", "same", "fastest", "slowest", "first", "last", "end", "beginning",
                               "upper", "lower", "whole"):  # fmt: skip
            continue
        fits = members(clip, split(f"the {part}")[0])
        assert len(fits) == 1, f"{rest!r} names {len(fits)} objects"
        return fits[0]
    return None


def _net(seen: Seen) -> np.ndarray:
    return seen.path[-1] - seen.path[0]


def _span(seen: Seen) -> float:
    return float(np.ptp(seen.path, axis=0).max())


def _enough(seen: Seen, share: float = 0.6) -> bool:
    """Is it seen whole often enough, also near the beginning and the end of its time in the picture?"""
    there = np.flatnonzero(seen.area)
    quarter = max(2, len(there) // 4)
    ends = seen.clean[there[:quarter]].any() and seen.clean[there[-quarter:]].any()
    return bool(ends) and float(seen.clean.mean()) >= share


def _swings(values: np.ndarray, height: float) -> int:
    """Changes of direction between runs of at least `height`."""
    count, heading, extreme = 0, 0, values[0]
    for value in values:
        if heading == 0 and abs(value - extreme) >= height:
            heading, extreme = (1 if value > extreme else -1), value
        elif heading and (value - extreme) * heading >= 0:
            extreme = value
        elif heading and abs(value - extreme) >= height:
            heading, extreme, count = -heading, value, count + 1
    return count


def _direction(seen: Seen, side: str) -> bool | None:
    if not _enough(seen, 0.35):
        return None
    net = _net(seen)
    along = float(net @ SIDES[side])
    return along >= 0.13 and along >= 1.5 * abs(float(net @ SIDES[side][::-1]))


def _halt(seen: Seen, at_end: bool) -> bool | None:
    tail = max(3, len(seen.area) // 5)
    quiet = slice(-tail, None) if at_end else slice(0, tail)
    if not seen.clean[quiet].all():
        return None if seen.area[quiet].any() else False
    return float(np.ptp(seen.centre[quiet], axis=0).max()) <= 0.025 and _span(seen) >= 0.15


def _turn(seen: Seen) -> bool | None:
    if not _enough(seen, 0.8):
        return None
    distance = np.sqrt(((seen.path - seen.path[0]) ** 2).sum(axis=1))
    peak = seen.path[distance.argmax()]
    back = float(np.sqrt(((seen.path[-1] - peak) ** 2).sum()))
    return float(distance.max()) >= 0.15 and back >= 0.12 and _bend(seen.path, peak) <= 0.1


def _bend(path: np.ndarray, end: np.ndarray) -> float:
    line = end - path[0]
    across = (path - path[0]) @ np.array([-line[1], line[0]]) / max(float(np.sqrt(line @ line)), 1e-6)
    return float(np.abs(across).max())


def _return(seen: Seen, side: str) -> bool | None:
    turned = _turn(seen)
    if not turned:
        return turned
    distance = np.sqrt(((seen.path - seen.path[0]) ** 2).sum(axis=1))
    out = (seen.path[distance.argmax()] - seen.path[0]) / distance.max()
    return float(out @ SIDES[side]) >= 0.7


def _corner(seen: Seen, first: str, then: str) -> bool | None:
    if not _enough(seen, 0.8):
        return None
    quarter = len(seen.path) // 4
    begin, end = seen.path[quarter] - seen.path[0], seen.path[-1] - seen.path[-1 - quarter]
    return all(
        float(leg @ SIDES[side]) >= max(0.03, 0.8 * float(np.sqrt(leg @ leg)))
        for leg, side in ((begin, first), (end, then))
    )


def _bounce(clip: Clip, seen: Seen) -> bool | None:
    if not _enough(seen, 0.7):
        return None
    for axis, size in ((0, clip.width), (1, clip.height)):
        if _swings(seen.path[:, axis], 0.08) >= 1:
            low, high = np.nanmin(seen.box[:, axis]), np.nanmax(seen.box[:, axis + 2])
            if low <= 0.025 or high >= size - 0.025:
                return True
    return False


def _size(seen: Seen) -> float | None:
    fifth = max(2, len(seen.area) // 5)
    first, last = seen.area[:fifth].max(), seen.area[-fifth:].max()
    hidden = np.diff(seen.area).min() < -0.3 * seen.area.max() or not first or not last
    return None if hidden else float(np.sqrt(last / first))


def _spins(seen: Seen) -> bool | None:
    """Rotation shows in the box of a shape that is not round."""
    if seen.looks["shape"] not in ("square", "triangle", "heart") or not _enough(seen, 0.8):
        return None
    size = (seen.box[:, 2:] - seen.box[:, :2])[seen.clean] / np.sqrt(seen.area[seen.clean])[:, None]
    return float(np.ptp(size, axis=0).max() / size.mean()) >= 0.12


def _enters(seen: Seen) -> bool:
    return not seen.area[:2].any()


def _leaves(seen: Seen) -> bool:
    return not seen.area[-2:].any()


def _edge(clip: Clip, seen: Seen, end: int, side: str) -> bool:
    box = seen.box[np.flatnonzero(seen.area)[end]]
    at = {"left": box[0], "top": box[1], "right": clip.width - box[2], "bottom": clip.height - box[3]}
    return min(at, key=lambda k: at[k]) == side


def _steps(seen: Seen) -> np.ndarray:
    both = seen.clean[1:] & seen.clean[:-1]
    return np.sqrt((np.diff(seen.centre, axis=0) ** 2).sum(axis=1))[both]


def solo(clip: Clip, predicate: str, seen: Seen) -> bool | None:
    """Does a claim that needs one object hold?"""
    head, _, side = predicate.partition("_")
    if predicate in ("rests", "moves"):
        quiet = _span(seen) <= 0.08
        return None if not _enough(seen, 0.3) else quiet if predicate == "rests" else not quiet
    if head in ("moves", "returns"):
        return (_direction if head == "moves" else _return)(seen, side)
    if head == "goes":
        return _corner(seen, *side.split("_then_"))
    if predicate in ("stops", "starts"):
        return _halt(seen, predicate == "stops")
    if head in ("enters", "leaves"):
        crossed = (_enters if head == "enters" else _leaves)(seen)
        return crossed and (not side or _edge(clip, seen, 0 if head == "enters" else -1, side))
    if predicate in ("grows", "shrinks"):
        ratio = _size(seen)
        return None if ratio is None else ratio >= 1.25 if predicate == "grows" else ratio <= 0.8
    if not _enough(seen, 0.75):
        return None
    if predicate == "hops":
        return _swings(seen.path[:, 1], 0.07) >= 3
    if predicate == "sways":
        return _swings(seen.path[:, 0], 0.07) >= 3
    if predicate == "circles":
        return bool(np.ptp(seen.path, axis=0).min() >= 0.15 and np.sqrt((_net(seen) ** 2).sum()) <= 0.45)
    table = {"turns_around": _turn, "spins": _spins}
    return _bounce(clip, seen) if predicate == "bounces" else table[predicate](seen)


def _at(seen: Seen, end: int) -> np.ndarray | None:
    return seen.centre[end] if seen.area[end] >= 0.5 * seen.area.max() else None


def _beside(mine: Seen, other: Seen, side: str, end: int) -> bool | None:
    a, b = _at(mine, end), _at(other, end)
    if a is None or b is None:
        return None if mine.area[end] else False
    along = float((a - b) @ SIDES[side])
    return along >= 0.05 and along >= 0.6 * abs(float((a - b) @ SIDES[side][::-1]))


def versus(predicate: str, mine: Seen, other: Seen) -> bool | None:
    """Does a claim about two objects hold?"""
    if predicate.startswith("passes"):
        return _passes(mine, other, predicate == "passes_behind")
    common = mine.clean & other.clean
    quarter = max(2, len(common) // 4)
    if common.mean() < 0.4 or not (common[:quarter].any() and common[-quarter:].any()):
        return None
    a, b = mine.centre[common], other.centre[common]
    gap = np.sqrt(((a - b) ** 2).sum(axis=1))
    if predicate in ("approaches", "departs"):
        change = gap[0] - gap[-1] if predicate == "approaches" else gap[-1] - gap[0]
        heading = (a[-1] - a[0]) / max(float(np.sqrt(((a[-1] - a[0]) ** 2).sum())), 1e-6)
        aim = (b[0] - a[0]) / gap[0] if predicate == "approaches" else (a[-1] - b[-1]) / gap[-1]
        return bool(change >= 0.12 and float(heading @ aim) >= 0.7 and _span(mine) >= 0.12)
    way = b[-1] - b[0]
    length = float(np.sqrt(way @ way))
    if length < 0.08 or _span(mine) < 0.08:
        return False
    lead = (a - b) @ way / length
    if predicate == "overtakes":
        return bool(lead[0] <= -0.03 and lead[-1] >= 0.03 and (a[-1] - a[0]) @ way > 0)
    same = float((a[-1] - a[0]) @ way) / length / max(float(np.sqrt(((a[-1] - a[0]) ** 2).sum())), 1e-6)
    return bool(lead.max() < 0 and same >= 0.8 and gap.max() <= 0.6)


def _passes(mine: Seen, other: Seen, behind: bool) -> bool | None:
    """Does `mine` cross the place of `other`, which rests, on the side of the viewer or behind it? The outline of
    whichever is underneath is taken from a frame in which it is whole, and moved along its path."""
    if not _enough(mine, 0.3) or not other.clean.any():
        return None
    if _span(mine) < 0.2 or _span(other) > 0.1:
        return False
    under, over = (mine, other) if behind else (other, mine)
    whole = np.flatnonzero(under.clean)
    unit = min(under.masks.shape[1:])
    overlap = 0.0
    for t in np.flatnonzero(over.area):
        at = [np.interp(t, whole, under.centre[whole, axis]) for axis in (0, 1)]
        near = whole[np.abs(whole - t).argmin()]
        shift = np.rint((np.array(at) - under.centre[near]) * unit).astype(int)
        place = np.roll(under.masks[near], shift[::-1], axis=(0, 1))
        hidden = place & over.masks[t] & ~under.masks[t]
        overlap = max(overlap, hidden.sum() / min(under.area.max(), over.area.max()))
    return overlap >= 0.25


def ranked(clip: Clip, predicate: str, group: list[int], other: int | None) -> list[int] | None:
    """The one of a group that leads, as a list."""
    seen = {a: clip.objects[a] for a in group}
    end = -1 if predicate.endswith("_end") else 0
    if predicate in ("biggest", "smallest"):
        sizes = {
            a: s.area.max() / {"star": 0.6, "ring": 0.75, "cross": 0.7}.get(s.looks["shape"], 1)
            for a, s in seen.items()
        }
        return [(max if predicate == "biggest" else min)(sizes, key=lambda a: sizes[a])]
    if predicate in ("fastest", "slowest"):
        speeds = {a: float(np.median(_steps(s))) for a, s in seen.items() if len(_steps(s)) >= 0.6 * len(s.area)}
        if len(speeds) < len(seen):
            return None
        return [(max if predicate == "fastest" else min)(speeds, key=lambda a: speeds[a])]
    if predicate.startswith(("enters", "leaves")):
        first = predicate.startswith("enters")
        times = {a: int(np.flatnonzero(s.area)[0 if first else -1]) for a, s in seen.items()}
        crossing = [a for a, s in seen.items() if (_enters if first else _leaves)(s)]
        return [(max if predicate.endswith("last") else min)(crossing, key=lambda a: times[a])]
    if predicate.startswith("outermost"):
        there = {a: s for a, s in seen.items() if s.area[0] > 0}
        return [max(there, key=lambda a: float(there[a].centre[0] @ SIDES[predicate.removeprefix("outermost_")]))]
    assert other is not None
    there = {a: s for a, s in seen.items() if s.area[end] > 0 and a != other}
    near = {
        a: float(np.sqrt(((s.centre[end] - clip.objects[other].centre[end]) ** 2).sum())) for a, s in there.items()
    }
    return [min(near, key=lambda a: near[a])]


RANKED = ("biggest", "smallest", "fastest", "slowest", "outermost", "nearest")
ORDERED = ("enters_first", "enters_last", "leaves_first", "leaves_last")
VERSUS = ("overtakes", "follows", "approaches", "departs", "passes_behind", "passes_in_front")


def answer(clip: Clip, expression: dict[str, Any]) -> tuple[list[int], list[int]]:
    """(annotations the sentence names, annotations of which the masks do not tell)."""
    text, predicate = expression["exp"], expression["predicate"]
    noun, rest = split(text)
    group, other = members(clip, noun), second(clip, rest)
    if predicate == "looks":
        return group, []
    if predicate.startswith(RANKED) or predicate in ORDERED:
        named = ranked(clip, predicate, [a for a in group if a != other], other)
        return ([], group) if named is None else (named, [])
    if predicate == "together":
        return _together(clip, group)
    verdicts = {a: _judge(clip, predicate, a, other) for a in group if a != other}
    return [a for a, v in verdicts.items() if v], [a for a, v in verdicts.items() if v is None]


def _judge(clip: Clip, predicate: str, anno: int, other: int | None) -> bool | None:
    mine = clip.objects[anno]
    if predicate in VERSUS:
        assert other is not None
        return versus(predicate, mine, clip.objects[other])
    for prefix, suffix, end in (("ends_", "_of", -1), ("", "_of", 0)):
        side = predicate.removeprefix(prefix).removesuffix(suffix)
        if predicate == f"{prefix}{side}{suffix}" and side in SIDES:
            assert other is not None
            return _beside(mine, clip.objects[other], side, end)
    for prefix, end in (("ends_on_", -1), ("on_", 0)):
        if predicate.startswith(prefix):
            dx, dy = SIDES[predicate.removeprefix(prefix)]
            place = _at(mine, end)
            if place is None:
                return None if mine.area[end] else False
            share = place[0] / clip.width if dx else place[1] / clip.height
            return bool(share <= 0.45 if dx + dy < 0 else share >= 0.55)
    return solo(clip, predicate, mine)


def _together(clip: Clip, group: list[int]) -> tuple[list[int], list[int]]:
    named, unclear = [], []
    for i, j in itertools.combinations(group, 2):
        a, b = clip.objects[i], clip.objects[j]
        common = a.clean & b.clean
        if common.mean() < 0.4:
            unclear += [i, j]
            continue
        offset = (a.centre - b.centre)[common]
        if float(np.ptp(offset, axis=0).max()) <= 0.06 and _span(a) >= 0.12:
            named += [i, j]
    return named, [a for a in unclear if a not in named]
