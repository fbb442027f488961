"""Claims that need a second object or the comparison within a group, with the same three verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from glus.data.synthetic.facts import FALSE, TRUE, UNSURE, Facts, both, rise, verdict
from glus.data.synthetic.predicates import HEADINGS, enters, leaves

Versus = Callable[[Facts, int, int], int]
Ranking = Callable[[Facts, Sequence[int]], list[int]]

START, END = 0, -1


def present(facts: Facts, i: int, frame: int) -> int:
    """Is the object there at the start (frame 0) or the end (-1) of the clip?"""
    ahead = facts.inside[i, :2] if frame == START else facts.inside[i, -2:]
    return verdict(bool(facts.visible[i, frame] >= 0.6), bool((ahead == 0).all()))


def beside(side: str, frame: int) -> Versus:
    """Left of, right of, above (up), below (down) another object at the start or the end."""
    dx, dy = HEADINGS[side]

    def judge(facts: Facts, i: int, j: int) -> int:
        offset = facts.screen[i, frame] - facts.screen[j, frame]
        forward, sideways = float(offset @ (dx, dy)), abs(float(offset @ (-dy, dx)))
        placed = verdict(
            forward >= 0.13 and sideways <= 0.8 * forward, forward <= -0.04 or sideways > 3 * abs(forward)
        )
        return both(placed, present(facts, i, frame))

    return judge


def on_side(side: str, frame: int) -> Callable[[Facts, int], int]:
    """In the left, right, upper or lower part of the picture at the start or the end."""
    dx, dy = HEADINGS[side]

    def judge(facts: Facts, i: int) -> int:
        x, y = facts.screen[i, frame]
        place = x / facts.width if dx else y / facts.height
        place = place if dx + dy < 0 else 1 - place
        return both(verdict(place <= 0.38, place >= 0.52), present(facts, i, frame))

    return judge


def _ranked(values: list[float | None], doubtful: bool, lead: float, ratio: float = 1.0) -> list[int]:
    """TRUE for the smallest value if it leads by `lead` and by the factor `ratio`; None cannot win."""
    known = sorted(v for v in values if v is not None)
    if doubtful or len(known) < 2 or known[1] - known[0] < lead or known[1] < ratio * known[0]:
        return [UNSURE] * len(values)
    return [TRUE if v == known[0] else FALSE for v in values]


def outermost(side: str, frame: int) -> Ranking:
    """The leftmost, ... of a group at the start or the end."""
    heading = np.array(HEADINGS[side])

    def judge(facts: Facts, group: Sequence[int]) -> list[int]:
        there = [present(facts, i, frame) for i in group]
        places = [
            -float(facts.screen[i, frame] @ heading) if p == TRUE else None
            for i, p in zip(group, there, strict=True)
        ]
        return _ranked(places, UNSURE in there, 0.1)

    return judge


def nearest(frame: int) -> Callable[[Facts, Sequence[int], int], list[int]]:
    """The one of a group closest to another object at the start or the end."""

    def judge(facts: Facts, group: Sequence[int], other: int) -> list[int]:
        there = [present(facts, i, frame) for i in group]
        gap = [
            float(np.sqrt(((facts.screen[i, frame] - facts.screen[other, frame]) ** 2).sum()))
            if p == TRUE
            else None
            for i, p in zip(group, there, strict=True)
        ]
        return _ranked(gap, UNSURE in there, 0.1, 1.4)

    return judge


def biggest(facts: Facts, group: Sequence[int]) -> list[int]:
    sizes = [float(facts.radius[i, 0]) for i in group]
    varying = any(float(np.ptp(facts.radius[i])) > 1e-6 for i in group)
    return _ranked([-s for s in sizes], varying or sorted(sizes)[-1] < 1.35 * sorted(sizes)[-2], 0.0)


def smallest(facts: Facts, group: Sequence[int]) -> list[int]:
    varying = any(float(np.ptp(facts.radius[i])) > 1e-6 for i in group)
    return _ranked([float(facts.radius[i, 0]) for i in group], varying, 0.0, 1.35)


def _speeds(facts: Facts, group: Sequence[int]) -> list[tuple[float, float]]:
    """(typical, highest) speed of each, in units per clip."""
    return [(float(np.percentile(s, 25)), float(s.max())) for s in (facts.tracks[i].speed for i in group)]


def fastest(facts: Facts, group: Sequence[int]) -> list[int]:
    """The one that at nearly all times moves faster than any other ever does."""
    speeds = _speeds(facts, group)
    winner = max(range(len(group)), key=lambda k: speeds[k][0])
    rivals = [s[1] for k, s in enumerate(speeds) if k != winner]
    moving = min(s[1] for s in speeds) >= 0.1
    clear = moving and speeds[winner][0] >= 1.4 * max(rivals) and speeds[winner][0] >= 0.3
    return [UNSURE if not clear else TRUE if k == winner else FALSE for k in range(len(group))]


def slowest(facts: Facts, group: Sequence[int]) -> list[int]:
    speeds = _speeds(facts, group)
    winner = min(range(len(group)), key=lambda k: speeds[k][1])
    rivals = [s[0] for k, s in enumerate(speeds) if k != winner]
    clear = speeds[winner][0] >= 0.1 and 1.4 * speeds[winner][1] <= min(rivals)
    return [UNSURE if not clear else TRUE if k == winner else FALSE for k in range(len(group))]


def _in_order(entering: bool, last: bool) -> Ranking:
    """The first or last of a group to come into, or go out of, the picture (at least two do)."""

    def judge(facts: Facts, group: Sequence[int]) -> list[int]:
        tracks = [facts.tracks[i] for i in group]
        crossing = [(enters if entering else leaves)(track) for track in tracks]
        times = [float(t.first if entering else t.last) * (-1 if last else 1) for t in tracks]
        known = [time if c == TRUE else None for time, c in zip(times, crossing, strict=True)]
        return _ranked(known, UNSURE in crossing, max(3, 0.1 * facts.frames))

    return judge


def overtakes(facts: Facts, i: int, j: int) -> int:
    """Runs the same way as another object, first behind it, then ahead of it."""
    mine, other, shared = facts.tracks[i], facts.tracks[j], facts.shared(i, j)
    length = float(np.sqrt((other.net**2).sum()))
    if mine.resting or other.resting:
        return FALSE  # what rests overtakes nothing; what passes a resting thing merely passes it
    if length < 0.14 or other.bend > 0.04 or shared.stop - shared.start < 4:
        return UNSURE
    heading = other.net / length
    lead = (facts.world[i] - facts.world[j])[shared] @ heading
    lane = (facts.world[i] - facts.world[j])[shared] @ np.array((-heading[1], heading[0]))
    reach = float((facts.radius[i] + facts.radius[j]).max())
    progress = float(mine.net @ heading)
    same_way = progress >= 0.95 * float(np.sqrt((mine.net**2).sum())) and mine.bend <= 0.04
    passes = lead[0] <= -0.6 * reach and lead[-1] >= 0.6 * reach and rise(-lead) <= 0.02
    yes = same_way and passes and progress >= 0.2 and float(np.abs(lane).max()) <= 0.36
    never = rise(lead) <= 0.02 or float(lead.min()) >= -0.02 or float(lead.max()) <= 0.02 or progress <= 0.03
    return verdict(bool(yes), never)


def follows(facts: Facts, i: int, j: int) -> int:
    """Runs after another object at a small distance, all the time."""
    mine, other, shared = facts.tracks[i], facts.tracks[j], facts.shared(i, j)
    if mine.resting or other.resting:
        return FALSE
    lengths = [float(np.sqrt((track.net**2).sum())) for track in (mine, other)]
    if min(lengths) < 0.15 or shared.stop - shared.start < 4:
        return UNSURE
    facing = float(mine.net @ other.net) / lengths[0] / lengths[1]
    heading = other.net / lengths[1]
    lead = (facts.world[i] - facts.world[j])[shared] @ heading
    lane = (facts.world[i] - facts.world[j])[shared] @ np.array((-heading[1], heading[0]))
    reach = float((facts.radius[i] + facts.radius[j]).max())
    close = float(lead.max()) <= -0.7 * reach and float(lead.min()) >= -1.9 * reach
    straight = facing >= 0.97 and max(mine.bend, other.bend) <= 0.03
    steady = float(np.abs(lane).max()) <= 0.35 * reach and float(np.ptp(lead)) <= 0.08
    return verdict(bool(close and straight and steady), facing <= 0.5 or float(lead.max()) >= 0.05)


def _heads(facts: Facts, i: int, j: int, away: bool) -> int:
    mine, other, shared = facts.tracks[i], facts.tracks[j], facts.shared(i, j)
    if mine.resting:
        return FALSE
    length = float(np.sqrt((mine.net**2).sum()))
    if length < 0.15 or shared.stop - shared.start < 4:
        return UNSURE
    gap = facts.distance(i, j)[shared]
    to_other = facts.world[j, shared.start] - facts.world[i, shared.start]
    facing = float(mine.net @ to_other) / length / max(float(np.sqrt((to_other**2).sum())), 1e-9)
    facing, gap = (-facing, gap[::-1]) if away else (facing, gap)
    reach = float((facts.radius[i] + facts.radius[j]).max())
    straight = other.resting and mine.bend <= 0.04 and mine.retreat <= 0.02
    yes = straight and facing >= 0.9 and gap[0] - gap[-1] >= 0.2 and gap[-1] <= 1.7 * reach
    return verdict(bool(yes), rise(-gap) <= 0.04)


def approaches(facts: Facts, i: int, j: int) -> int:
    return _heads(facts, i, j, away=False)


def departs(facts: Facts, i: int, j: int) -> int:
    return _heads(facts, i, j, away=True)


def _passes(facts: Facts, i: int, j: int, behind: bool) -> int:
    hidden = facts.covered[i, j]
    if not behind:  # as a share of the smaller of the two
        hidden = facts.covered[j, i] * max(1.0, float(facts.radius[j, 0] / facts.radius[i, 0])) ** 2
    ends = bool(facts.visible[i, 0] >= 0.8 and facts.visible[i, -1] >= 0.8)
    through = ends and float(hidden[0]) <= 0.02 and float(hidden[-1]) <= 0.02 and facts.tracks[i].span >= 0.3
    peak = float(hidden.max())
    return verdict(through and peak >= 0.5 and facts.tracks[j].resting, peak <= 0.01)


def passes_behind(facts: Facts, i: int, j: int) -> int:
    return _passes(facts, i, j, behind=True)


def passes_in_front(facts: Facts, i: int, j: int) -> int:
    return _passes(facts, i, j, behind=False)


def together(facts: Facts, i: int, j: int) -> int:
    """Two objects keep the same offset while both move."""
    mine, other, shared = facts.tracks[i], facts.tracks[j], facts.shared(i, j)
    if mine.resting or other.resting:
        return FALSE
    if shared.stop - shared.start < 4:
        return UNSURE
    offset = (facts.world[i] - facts.world[j])[shared]
    change = float(np.ptp(offset, axis=0).max())
    close = float(facts.distance(i, j)[shared].max()) <= 0.6
    complete = mine.whole_clip and other.whole_clip and min(mine.span, other.span) >= 0.2
    return verdict(change <= 0.02 and close and complete, change >= 0.15)


VERSUS: dict[str, Versus] = {
    "overtakes": overtakes,
    "follows": follows,
    "approaches": approaches,
    "departs": departs,
    "passes_behind": passes_behind,
    "passes_in_front": passes_in_front,
}
RANKINGS: dict[str, Ranking] = {
    "fastest": fastest,
    "slowest": slowest,
    "enters_first": _in_order(entering=True, last=False),
    "enters_last": _in_order(entering=True, last=True),
    "leaves_first": _in_order(entering=False, last=False),
    "leaves_last": _in_order(entering=False, last=True),
}
