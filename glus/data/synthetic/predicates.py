"""Claims about what one object does, judged TRUE, FALSE or UNSURE from the facts.

Every claim has a margin on both sides: TRUE is plain to see, FALSE is plainly not so, what lies between is
UNSURE, and a sentence that would need an UNSURE object is never written.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from glus.data.synthetic.facts import FALSE, TRUE, UNSURE, Facts, Track, both, rise, turning_points, verdict
from glus.data.synthetic.shapes import ROUND_SHAPES

HEADINGS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
EDGES = ("left", "top", "right", "bottom")  # order of Track.gaps

Judge = Callable[[Track], int]


def moves_towards(side: str) -> Judge:
    def judge(track: Track) -> int:
        progress, retreat, sideways = track.along(HEADINGS[side])
        yes = progress >= 0.25 and retreat <= 0.03 and sideways <= 0.4 * progress
        return verdict(yes, progress <= 0.05 or (progress <= 0.11 and sideways >= 3 * progress))

    return judge


def rests(track: Track) -> int:
    spread = float(track.radius.max() / track.radius.min())
    calm = track.whole_clip and spread <= 1.02 and float(np.ptp(track.angle)) <= 0.02
    return verdict(track.resting and calm, track.span >= 0.12)


def moves(track: Track) -> int:
    return verdict(track.span >= 0.15, rests(track) == TRUE)


def _halts(track: Track, backwards: bool) -> int:
    """Moves, then rests until the end of the clip; backwards: rests at the start, then moves."""
    path = track.path[::-1] if backwards else track.path
    rest = track.rest_at_end(backwards)
    ends_in_view = track.first == 0 if backwards else track.last == track.frames - 1
    way = float(np.sqrt(((path - path[-1]) ** 2).sum(axis=1)).max())
    # Before the final rest there must be one movement, without pauses.
    moving = path[: len(path) - rest + 1]
    paused = len(moving) > 3 and track.longest_rest > max(rest, 2)
    yes = ends_in_view and way >= 0.22 and rest >= max(0.25 * track.frames, 3) and not paused
    never_rests = track.longest_rest <= max(1, 0.09 * track.frames)
    return verdict(yes, track.resting or never_rests or _halts_other_way(track, backwards))


def _halts_other_way(track: Track, backwards: bool) -> bool:
    """Rests only at the other end of its time in view, and moves to this end."""
    here, there = track.rest_at_end(backwards), track.rest_at_end(not backwards)
    return here <= 1 and there == track.longest_rest and track.span >= 0.2


def stops(track: Track) -> int:
    return _halts(track, backwards=False)


def starts(track: Track) -> int:
    return _halts(track, backwards=True)


def _straight_or_resting(track: Track) -> bool:
    return track.resting or (track.bend <= 0.04 and track.retreat <= 0.03)


def _turn(track: Track) -> tuple[int, np.ndarray]:
    """(turns round, unit vector of the way out)."""
    distance = np.sqrt((track.offset**2).sum(axis=1))
    peak = int(distance.argmax())
    out = track.offset[peak] / max(float(distance[peak]), 1e-9)
    forward = track.offset @ out
    sideways = track.offset @ np.array((-out[1], out[0]))
    yes = (
        forward[peak] >= 0.2
        and forward[peak] - forward[-1] >= 0.18
        and rise(-forward[: peak + 1]) <= 0.02
        and rise(forward[peak:]) <= 0.02
        and float(np.ptp(sideways)) <= 0.3 * forward[peak]
        and float(track.gaps[peak].min()) >= 0.05
    )
    return verdict(bool(yes), _straight_or_resting(track)), out


def turns_around(track: Track) -> int:
    spinning = float(np.ptp(track.angle)) > 0.02  # which some would call turning around
    return UNSURE if spinning else _turn(track)[0]


def goes_and_returns(side: str) -> Judge:
    def judge(track: Track) -> int:
        turned, out = _turn(track)
        if turned != TRUE:
            return turned
        facing = float(out @ np.array(HEADINGS[side]))
        return verdict(facing >= 0.95, facing <= 0.3)

    return judge


def goes_then(first: str, second: str) -> Judge:
    """One way, then round a corner another way."""

    def judge(track: Track) -> int:
        if _straight_or_resting(track):
            return FALSE
        length = float(np.sqrt((track.net**2).sum()))
        if length < 0.15 or track.bend < 0.1:
            return UNSURE
        across = np.abs(track.offset[:, 0] * track.net[1] - track.offset[:, 1] * track.net[0])
        knee = int(across.argmax())
        legs = (track.path[: knee + 1], track.path[knee:])
        facing = [_faces(leg, HEADINGS[side]) for leg, side in zip(legs, (first, second), strict=True)]
        return both(*facing)

    return judge


def _faces(leg: np.ndarray, heading: tuple[float, float]) -> int:
    """Whether a leg of a path is a straight run of some length along a heading."""
    run = leg[-1] - leg[0]
    length = float(np.sqrt((run**2).sum()))
    if length < 0.18:
        return UNSURE
    across = ((leg - leg[0]) @ np.array((-run[1], run[0]))) / length
    if float(np.abs(across).max()) > 0.04:
        return UNSURE
    facing = float(run @ np.array(heading)) / length
    return verdict(facing >= 0.95, facing <= 0.4)


def bounces(track: Track) -> int:
    """Comes back off the picture's edge."""
    touched = False
    for axis, edges in ((0, (0, 2)), (1, (1, 3))):
        for point in turning_points(track.screen[:, axis], 0.1):
            touched |= float(min(track.gaps[point, edge] for edge in edges)) <= 0.015
    contained = bool((track.inside >= 0.97).all())
    return verdict(touched and contained, _straight_or_resting(track))


def hops(track: Track) -> int:
    swings = len(turning_points(track.path[:, 1], 0.1))
    return verdict(swings >= 4, not turning_points(track.path[:, 1], 0.04))


def sways(track: Track) -> int:
    swings = len(turning_points(track.path[:, 0], 0.1))
    return verdict(
        swings >= 3 and float(np.ptp(track.path[:, 1])) <= 0.15, not turning_points(track.path[:, 0], 0.04)
    )


def circles(track: Track) -> int:
    """Runs round in a circle at least once."""
    step = np.diff(track.path, axis=0)
    length = float(np.sqrt((step**2).sum(axis=1)).sum())
    heading = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    turned = abs(float(heading[-1] - heading[0]))
    size = float(np.ptp(track.path, axis=0).min())
    yes = length >= 0.7 and turned >= 1.75 * math.pi and size >= 0.22 and track.speed.min() > 0.2
    return verdict(bool(yes), size <= 0.06 or _straight_or_resting(track))


def grows(track: Track) -> int:
    ratio = float(track.radius[track.last] / track.radius[track.first])
    return verdict(ratio >= 1.5, ratio <= 1.03)


def shrinks(track: Track) -> int:
    ratio = float(track.radius[track.last] / track.radius[track.first])
    return verdict(ratio <= 1 / 1.5, ratio >= 1 / 1.03)


def enters(track: Track) -> int:
    """Not there at first, later wholly in the picture."""
    absent = bool((track.inside[: max(2, track.frames // 10)] == 0).all())
    there = float(np.sort(track.inside)[-3]) >= 0.95
    seen = bool(track.inside[0] >= 0.95 and track.visible[0] >= 0.3)
    return verdict(absent and there, seen and _stays_in(track))


def leaves(track: Track) -> int:
    gone = bool((track.inside[-max(2, track.frames // 10) :] == 0).all())
    there = float(np.sort(track.inside)[-3]) >= 0.95
    seen = bool(track.inside[-1] >= 0.95 and track.visible[-1] >= 0.3)
    return verdict(gone and there, seen and _stays_in(track))


def _stays_in(track: Track) -> bool:
    """Between its first and last frame in view it does not go out and come back."""
    return bool((track.inside[track.first : track.last + 1] >= 0.25).all())


def _edge(track: Track, end: int) -> str | None:
    """The edge the object crosses at the first (0) or last (-1) frame in view, if plainly one."""
    gaps = track.gaps[end]
    order = np.argsort(gaps)
    return EDGES[int(order[0])] if gaps[order[0]] < 0 and gaps[order[1]] > 0.01 else None


def _crosses(judge: Judge, end: int, side: str) -> Judge:
    def by_side(track: Track) -> int:
        crossed = judge(track)
        if crossed != TRUE:
            return crossed
        edge = _edge(track, end)
        return UNSURE if edge is None else TRUE if edge == side else FALSE

    return by_side


def enters_from(side: str) -> Judge:
    return _crosses(enters, 0, side)


def leaves_by(side: str) -> Judge:
    return _crosses(leaves, -1, side)


def spins(facts: Facts, i: int, shape: str, texture: str) -> int:
    """Turns on the spot or while moving; a plain round thing does not show it."""
    turn = float(np.ptp(facts.tracks[i].angle))
    shows = shape not in ROUND_SHAPES or texture != "plain"
    return verdict(shows and turn >= 1.5 * math.pi, turn <= 0.02)


# name -> judge, for the claims that need nothing but the object's own track
SOLO: dict[str, Judge] = {
    **{f"moves_{side}": moves_towards(side) for side in HEADINGS},
    "rests": rests,
    "moves": moves,
    "stops": stops,
    "starts": starts,
    "turns_around": turns_around,
    **{f"returns_{side}": goes_and_returns(side) for side in HEADINGS},
    **{
        f"goes_{first}_then_{second}": goes_then(first, second)
        for first in HEADINGS
        for second in HEADINGS
        if (first in ("left", "right")) != (second in ("left", "right"))
    },
    "bounces": bounces,
    "hops": hops,
    "sways": sways,
    "circles": circles,
    "grows": grows,
    "shrinks": shrinks,
    "enters": enters,
    "leaves": leaves,
    **{f"enters_{side}": enters_from(side) for side in EDGES},
    **{f"leaves_{side}": leaves_by(side) for side in EDGES},
}
