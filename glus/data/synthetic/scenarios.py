"""Plots: moves of several things that mean something together (overtaking, racing, meeting, ...)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from glus.data.synthetic import motion
from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.dice import Dice
from glus.data.synthetic.motion import Body, Move, clock, steady, waypoints


@dataclass(frozen=True)
class Plot:
    """Moves by object index, all with fixed starts; behind: (back, front), a wish for the depth order."""

    moves: dict[int, Move] = field(default_factory=dict)
    behind: tuple[int, int] | None = None


def _straight(
    config: SyntheticConfig, name: str, start: Sequence[float], end: Sequence[float], last: float = 1.0
) -> Move:
    goal = (end[0] - start[0], end[1] - start[1])
    return steady(name, waypoints(clock(config), (0, last), ((0, 0), goal)), (start[0], start[1]))


def _spot(config: SyntheticConfig, dice: Dice, margin: float) -> tuple[float, float]:
    return dice.uniform(margin, config.width - margin), dice.uniform(margin, config.height - margin)


def _inside(config: SyntheticConfig, point: Sequence[float], margin: float) -> bool:
    return all(margin <= p <= size - margin for p, size in zip(point, (config.width, config.height), strict=True))


def overtake(config: SyntheticConfig, dice: Dice, bodies: Sequence[Body], alike: int) -> Plot:
    """Thing 0 starts behind the last thing, in the next lane, and ends ahead of it."""
    mine, other = 0, len(bodies) - 1
    sizes, axis, sign = (config.width, config.height), dice.weighted(((0, 2.0), (1, 1.0))), dice.sign()
    gap = (bodies[mine].reach + bodies[other].reach) * 1.05
    slow = dice.uniform(0.18, 0.26) * sizes[axis]
    fast = slow + gap + max(gap, dice.uniform(0.2, 0.3) * sizes[axis])
    margin = bodies[mine].reach
    start = dice.uniform(margin, max(margin, sizes[axis] - margin - fast))
    lane = dice.sign() * dice.uniform(0.8, 1.1) * (bodies[mine].reach + bodies[other].reach)
    edge = max(bodies[mine].reach, bodies[other].reach)
    across = dice.uniform(edge + max(0.0, -lane), sizes[1 - axis] - edge - max(0.0, lane))

    def point(along: float, side: float) -> tuple[float, float]:
        along = along if sign > 0 else sizes[axis] - along
        return (along, side) if axis == 0 else (side, along)

    return Plot(
        {
            mine: _straight(config, "overtake", point(start, across), point(start + fast, across)),
            other: _straight(
                config, "linear", point(start + gap, across + lane), point(start + gap + slow, across + lane)
            ),
        }
    )


def together(config: SyntheticConfig, dice: Dice, bodies: Sequence[Body], alike: int) -> Plot:
    """Two look-alikes keep side by side along the same path."""
    apart = (bodies[0].reach + bodies[1].reach) * dice.uniform(1.12, 1.4)
    for _ in range(10):
        program = dice.pick((motion.linear, motion.linear, motion.turn_around, motion.corner))
        path, angle = program(config, dice, bodies[0]).path, dice.uniform(0, 2 * math.pi)
        plot = _pair(config, dice, bodies, (0, 1), path, (apart * math.cos(angle), apart * math.sin(angle)))
        if plot.moves:
            return plot
    return Plot()


def follow(config: SyntheticConfig, dice: Dice, bodies: Sequence[Body], alike: int) -> Plot:
    """Thing 0 runs after the last thing."""
    last = len(bodies) - 1
    apart = (bodies[0].reach + bodies[last].reach) * dice.uniform(1.12, 1.35)
    for _ in range(10):
        path = motion.linear(config, dice, bodies[0]).path
        ahead = path[-1] * (apart / math.hypot(*path[-1]))
        plot = _pair(config, dice, bodies, (0, last), path, (float(ahead[0]), float(ahead[1])))
        if plot.moves:
            return plot
    return Plot()


def _pair(
    config: SyntheticConfig,
    dice: Dice,
    bodies: Sequence[Body],
    who: tuple[int, int],
    path: np.ndarray,
    offset: tuple[float, float],
) -> Plot:
    """The first of `who` along `path`, the second at a fixed offset from it; empty if there is no room."""
    margin = max(bodies[i].reach for i in who)
    both = np.concatenate([path, path + offset])
    low, high = margin - both.min(axis=0), np.array([config.width, config.height]) - margin - both.max(axis=0)
    if (low > high).any():
        return Plot()
    x, y = dice.uniform(low[0], high[0]), dice.uniform(low[1], high[1])
    first, second = steady("pair", path, (x, y)), steady("pair", path, (x + offset[0], y + offset[1]))
    return Plot({who[0]: first, who[1]: second})


def approach(config: SyntheticConfig, dice: Dice, bodies: Sequence[Body], alike: int) -> Plot:
    """Thing 0 goes up to the last thing, which rests, or away from it."""
    last = len(bodies) - 1
    contact = (bodies[0].reach + bodies[last].reach) * 1.08
    for _ in range(20):
        goal = _spot(config, dice, bodies[last].reach)
        far = _spot(config, dice, bodies[0].reach)
        distance = math.dist(goal, far)
        if distance > contact + 0.38 * config.unit:
            break
    else:
        return Plot()
    near = tuple(g + (f - g) * contact / distance for g, f in zip(goal, far, strict=True))
    if not _inside(config, near, bodies[0].reach):
        return Plot()
    ends = (far, near) if dice.chance(0.55) else (near, far)
    move = _straight(config, "approach", ends[0], ends[1], dice.uniform(0.75, 1.0))
    return Plot({last: _straight(config, "still", goal, goal), 0: move})


def crossing(config: SyntheticConfig, dice: Dice, bodies: Sequence[Body], alike: int) -> Plot:
    """Thing 0 passes right behind or in front of the last thing."""
    last = len(bodies) - 1
    reach = bodies[0].reach + bodies[last].reach
    for _ in range(30):
        goal = _spot(config, dice, bodies[last].reach)
        dx, dy = motion.direction(dice)
        before, after = (reach * dice.uniform(1.1, 1.3) + dice.uniform(0, 0.15) * config.unit for _ in range(2))
        start, end = (goal[0] - dx * before, goal[1] - dy * before), (goal[0] + dx * after, goal[1] + dy * after)
        if _inside(config, start, bodies[0].reach) and _inside(config, end, bodies[0].reach):
            moves = {last: _straight(config, "still", goal, goal), 0: _straight(config, "crossing", start, end)}
            hidden = dice.chance(0.75) and bodies[0].reach <= 1.15 * bodies[last].reach
            return Plot(moves, (0, last) if hidden else (last, 0))
    return Plot()


def race(config: SyntheticConfig, dice: Dice, bodies: Sequence[Body], alike: int) -> Plot:
    """The look-alikes run in parallel lanes, one far faster than the others."""
    sizes, axis = (config.width, config.height), dice.weighted(((0, 2.0), (1, 1.0)))
    sign, winner, wide = dice.sign(), dice.below(alike), sizes[1 - axis] / alike
    moves = {}
    for lane, index in enumerate(dice.shuffled(range(alike))):
        margin = bodies[index].reach
        length = (dice.uniform(0.58, 0.68) if index == winner else dice.uniform(0.16, 0.27)) * sizes[axis]
        start = dice.uniform(margin, max(margin, sizes[axis] - margin - length))
        side = wide * (lane + 0.5) + dice.uniform(-0.1, 0.1) * wide
        points = [along if sign > 0 else sizes[axis] - along for along in (start, start + length)]
        ends = [(along, side) if axis == 0 else (side, along) for along in points]
        moves[index] = _straight(config, "race", ends[0], ends[1])
    return Plot(moves)


def exits(config: SyntheticConfig, dice: Dice, bodies: Sequence[Body], alike: int) -> Plot:
    """The look-alikes leave one after the other."""
    times = dice.shuffled((0.42, 0.62, 0.84) if alike == 3 else (0.45, 0.8))
    who = range(alike)
    return Plot({i: motion.leave(config, dice, bodies[i], times[i] + dice.uniform(-0.03, 0.03)) for i in who})


def entries(config: SyntheticConfig, dice: Dice, bodies: Sequence[Body], alike: int) -> Plot:
    """The look-alikes come in one after the other."""
    times = dice.shuffled((0.16, 0.36, 0.56) if alike == 3 else (0.2, 0.5))
    who = range(alike)
    return Plot({i: motion.enter(config, dice, bodies[i], times[i] + dice.uniform(-0.03, 0.03)) for i in who})


def nothing(config: SyntheticConfig, dice: Dice, bodies: Sequence[Body], alike: int) -> Plot:
    return Plot()


_PLOTS: tuple[tuple[Callable[[SyntheticConfig, Dice, Sequence[Body], int], Plot], float], ...] = (
    (nothing, 2.2),
    (overtake, 2.2),
    (together, 1.6),
    (follow, 1.2),
    (approach, 1.4),
    (crossing, 1.4),
    (race, 1.2),
    (exits, 1.2),
    (entries, 1.2),
)


def draw(config: SyntheticConfig, dice: Dice, bodies: Sequence[Body], alike: int) -> Plot:
    """A plot for a cast whose first `alike` things look alike and whose last does not belong to them."""
    return dice.weighted(_PLOTS)(config, dice, bodies, alike)
