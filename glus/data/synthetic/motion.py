"""Motion programs: relative paths over the clip, and where in the picture they can start.

A path is float [T, 2] in pixels relative to its start; time runs from 0 to 1 over the clip. Sentences are
never derived from the program an object was given, only from what it is then seen to do (`facts`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.dice import Dice

_SMOOTHING = np.linspace(-0.03, 0.03, 7)  # a short box filter in time takes the jerk out of corners


@dataclass(frozen=True)
class Move:
    """A path and the other things that change along it.

    path: float [T, 2] relative pixels; scale: float [T] size factor; turn: float [T] rotation in radians.
    start: fixed start in pixels for programs that cross the picture's edge, else None (placed to fit).
    """

    name: str
    path: np.ndarray
    scale: np.ndarray
    turn: np.ndarray
    start: tuple[float, float] | None = None


@dataclass(frozen=True)
class Body:
    """How far an object extends from its centre, in pixels: to the left, right, top, bottom."""

    extents: tuple[float, float, float, float]

    @property
    def reach(self) -> float:
        return max(self.extents)

    def span(self, axis: int, sign: float) -> float:
        """Extent along an axis (0 x, 1 y) in the direction of `sign`."""
        return self.extents[2 * axis + (1 if sign > 0 else 0)]


def clock(config: SyntheticConfig) -> np.ndarray:
    return np.linspace(0.0, 1.0, config.frames)


def waypoints(time: np.ndarray, times: Sequence[float], points: Sequence[Sequence[float]]) -> np.ndarray:
    """A path through `points` at `times`, held before the first and after the last, slightly smoothed."""
    samples = time[:, None] + _SMOOTHING[None]
    columns = [np.interp(samples, times, [p[axis] for p in points]).mean(axis=1) for axis in (0, 1)]
    return np.stack(columns, axis=1)


def steady(name: str, path: np.ndarray, start: tuple[float, float] | None = None) -> Move:
    """A move without change of size or angle."""
    return Move(name, path, np.ones(len(path)), np.zeros(len(path)), start)


def direction(dice: Dice, diagonal: float = 0.2) -> tuple[float, float]:
    """A unit vector near one of the four axes, or (with probability `diagonal`) between them."""
    angle = dice.below(4) * math.pi / 2 + dice.uniform(-0.1, 0.1)
    if dice.chance(diagonal):
        angle += math.pi / 4
    return math.cos(angle), math.sin(angle)


def reach(config: SyntheticConfig, heading: tuple[float, float], fraction: float) -> tuple[float, float]:
    """`fraction` of the picture's extent along `heading`, as a vector in pixels."""
    extent = abs(heading[0]) * config.width + abs(heading[1]) * config.height
    return heading[0] * extent * fraction, heading[1] * extent * fraction


def still(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    return steady("still", np.zeros((config.frames, 2)))


def linear(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    goal = reach(config, direction(dice), dice.uniform(0.36, 0.62))
    return steady("linear", waypoints(clock(config), (0, 1), ((0, 0), goal)))


def stop(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    goal = reach(config, direction(dice), dice.uniform(0.34, 0.5))
    return steady("stop", waypoints(clock(config), (0, dice.uniform(0.4, 0.62)), ((0, 0), goal)))


def begin(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    goal = reach(config, direction(dice), dice.uniform(0.34, 0.5))
    return steady("begin", waypoints(clock(config), (dice.uniform(0.38, 0.6), 1), ((0, 0), goal)))


def turn_around(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    goal = reach(config, direction(dice, 0.1), dice.uniform(0.32, 0.48))
    back = dice.uniform(-0.1, 0.2)
    end = (goal[0] * back, goal[1] * back)
    return steady("turn", waypoints(clock(config), (0, dice.uniform(0.42, 0.58), 1), ((0, 0), goal, end)))


def corner(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    heading = direction(dice, 0.0)
    side = dice.sign()
    first = reach(config, heading, dice.uniform(0.28, 0.42))
    second = reach(config, (-heading[1] * side, heading[0] * side), dice.uniform(0.28, 0.42))
    end = (first[0] + second[0], first[1] + second[1])
    return steady("corner", waypoints(clock(config), (0, dice.uniform(0.42, 0.58), 1), ((0, 0), first, end)))


def hop(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    time = clock(config)
    drift = dice.sign() * dice.uniform(0.0, 0.35) * config.width
    jump = np.abs(np.sin(time * math.pi * dice.pick((3, 4)))) * dice.uniform(0.17, 0.26) * config.unit
    return steady("hop", np.stack([drift * time, -jump], axis=1))


def sway(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    time = clock(config)
    swing = np.sin(time * 2 * math.pi * dice.pick((2, 2.5))) * dice.uniform(0.13, 0.2) * config.unit
    drift = dice.sign() * dice.uniform(0.0, 0.12) * config.height * time
    return steady("sway", np.stack([swing * dice.sign(), drift], axis=1))


def orbit(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    angle = dice.uniform(0, 2 * math.pi) + clock(config) * dice.sign() * 2 * math.pi * dice.uniform(1.0, 1.25)
    size = dice.uniform(0.13, 0.2) * config.unit
    path = size * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return steady("orbit", path - path[0])


def grow(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    return _resized(config, dice, body, "grow", growing=True)


def shrink(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    return _resized(config, dice, body, "shrink", growing=False)


def _resized(config: SyntheticConfig, dice: Dice, body: Body, name: str, growing: bool) -> Move:
    base = linear(config, dice, body) if dice.chance(0.4) else still(config, dice, body)
    ratio = dice.uniform(1.75, 2.0)
    peak = min(ratio, 0.18 * config.unit / body.reach)
    scale = peak / ratio + (peak - peak / ratio) * clock(config)
    return Move(name, base.path, scale if growing else scale[::-1], base.turn)


def spin(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    base = linear(config, dice, body) if dice.chance(0.4) else still(config, dice, body)
    turn = clock(config) * dice.sign() * dice.uniform(1.2, 1.9) * 2 * math.pi
    return Move("spin", base.path, base.scale, turn)


def leave(config: SyntheticConfig, dice: Dice, body: Body, out: float | None = None) -> Move:
    """Wait, then go straight out of the picture; out: the time at which nothing is seen any more."""
    size, margin, wait = (config.width, config.height), 1.05 * body.reach, dice.pick((0.0, 0.0, 0.2))
    out = dice.uniform(0.5, 0.85) if out is None else out
    heading = direction(dice, 0.0)
    axis = 0 if abs(heading[0]) > abs(heading[1]) else 1
    start = [dice.uniform(margin, size[0] - margin), dice.uniform(margin, size[1] - margin)]
    # The way out leads through a good part of the picture, so that there is something to see.
    gap = dice.uniform(0.45, 0.75) * size[axis]
    start[axis] = gap if heading[axis] < 0 else size[axis] - gap
    length = (gap + margin) / abs(heading[axis]) / max(out - wait, 0.2) * (1 - wait)
    goal = (heading[0] * length, heading[1] * length)
    return steady("leave", waypoints(clock(config), (wait, 1), ((0, 0), goal)), (start[0], start[1]))


def enter(config: SyntheticConfig, dice: Dice, body: Body, seen: float | None = None) -> Move:
    """`leave` run backwards; seen: the time from which it shows."""
    away = leave(config, dice, body, None if seen is None else 1.0 - seen)
    assert away.start is not None
    path = away.path[::-1] - away.path[-1]
    start = (away.start[0] + float(away.path[-1, 0]), away.start[1] + float(away.path[-1, 1]))
    return steady("enter", path, start)


def bounce(config: SyntheticConfig, dice: Dice, body: Body) -> Move:
    """Run straight into the picture's edge and back again, drifting sideways."""
    size, axis, sign = (config.width, config.height), dice.below(2), dice.sign()
    room = size[axis] - body.span(axis, sign) - body.span(axis, -sign)
    hit, there = dice.uniform(0.4, 0.6), dice.uniform(0.5, 0.9) * room
    back = there - min(there * (1 - hit) / hit, room)
    drift = dice.uniform(-0.3, 0.3) * size[1 - axis]
    corners = [[0.0, 0.0], [drift * hit, drift * hit], [drift, drift]]
    corners[1][axis], corners[2][axis] = sign * there, sign * back
    path = waypoints(clock(config), (0, hit, 1), corners)
    peak = float((sign * path[:, axis]).max())  # smoothing cuts the tip off; it still has to touch
    wall = size[axis] - body.span(axis, sign) if sign > 0 else body.span(axis, sign)
    low = body.reach - float(path[:, 1 - axis].min())
    high = size[1 - axis] - body.reach - float(path[:, 1 - axis].max())
    start = [dice.uniform(low, max(low, high))] * 2
    start[axis] = wall - sign * peak
    return steady("bounce", path, (start[0], start[1]))


SOLO: tuple[tuple[Callable[[SyntheticConfig, Dice, Body], Move], float], ...] = (
    (still, 1.6),
    (linear, 3.0),
    (stop, 1.5),
    (begin, 1.3),
    (turn_around, 1.5),
    (corner, 0.8),
    (hop, 0.8),
    (sway, 0.7),
    (orbit, 0.8),
    (grow, 0.6),
    (shrink, 0.6),
    (spin, 0.6),
    (enter, 1.3),
    (leave, 1.3),
    (bounce, 0.9),
)


def place(config: SyntheticConfig, dice: Dice, move: Move, body: Body) -> np.ndarray | None:
    """Positions float [T, 2] of a move in the picture, or None if the path does not fit."""
    if move.start is not None:
        return move.path + move.start
    margin = body.reach * move.scale[:, None] * 1.03
    low = (margin - move.path).max(axis=0)
    high = ((config.width, config.height) - margin - move.path).min(axis=0)
    if (high < low).any():
        return None
    start = np.array([dice.uniform(low[0], high[0]), dice.uniform(low[1], high[1])])
    return np.asarray(move.path + start)
