"""What is in a video: things with look-alikes, where they are at each frame, who is in front."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from glus.data.synthetic import motion, scenarios
from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.dice import Dice
from glus.data.synthetic.motion import Body, Move
from glus.data.synthetic.shapes import COLOURS, SHAPES, SIZE_RANGE, SIZES, TEXTURES, outline

_TEXTURE_WEIGHTS = (("plain", 0.5), ("striped", 0.27), ("dotted", 0.23))
_COUNT_WEIGHTS = (0.15, 0.3, 0.3, 0.25, 0.2, 0.2)
_PLACEMENTS = 25


@dataclass(frozen=True)
class Thing:
    """One object's looks. radius in pixels (before its move's scale), angles in radians."""

    shape: str
    colour: str
    texture: str
    size: str
    rgb: tuple[float, float, float]
    radius: float
    tilt: float
    grain: float  # direction of the stripes, relative to the tilt

    @property
    def looks(self) -> tuple[str, str, str, str]:
        return self.shape, self.colour, self.texture, self.size

    def body(self) -> Body:
        corners = outline(self.shape, 0, 0, self.radius, self.tilt)[0]
        low, high = corners.min(axis=0), corners.max(axis=0)
        return Body((-float(low[0]), float(high[0]), -float(low[1]), float(high[1])))


@dataclass(frozen=True)
class Scene:
    """A simulated video before it is drawn.

    world: float [O, T, 2] centres in pixels, fixed to the background; camera: int [T, 2], a centre on screen is
    `world - camera`. scale: float [O, T]; angle: float [O, T]. order: object indices from back to front.
    """

    config: SyntheticConfig
    things: list[Thing]
    moves: list[str]
    world: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    camera: np.ndarray
    order: list[int]

    @property
    def screen(self) -> np.ndarray:
        return np.asarray(self.world - self.camera[None])

    @property
    def radius(self) -> np.ndarray:
        """float [O, T] in pixels."""
        return np.array([t.radius for t in self.things])[:, None] * self.scale


def _other(dice: Dice, items: tuple[str, ...], value: str) -> str:
    return dice.pick([item for item in items if item != value])


def _thing(config: SyntheticConfig, dice: Dice, looks: tuple[str, str, str, str]) -> Thing:
    shape, colour, texture, size = looks
    brightness = dice.uniform(0.92, 1.04)
    red, green, blue = (min(255.0, channel * brightness + dice.uniform(-4, 4)) for channel in COLOURS[colour])
    low, high = SIZE_RANGE[size]
    radius = dice.uniform(low, high) * config.unit
    return Thing(
        shape,
        colour,
        texture,
        size,
        (red, green, blue),
        radius,
        dice.uniform(-0.22, 0.22),
        dice.uniform(0, 3.14),
    )


def _cast(config: SyntheticConfig, dice: Dice) -> tuple[list[Thing], int]:
    """The things of a scene, look-alikes first; also how many of them are look-alikes."""
    counts = list(zip(range(3, 9), _COUNT_WEIGHTS, strict=True))
    count = dice.weighted([c for c in counts if config.min_objects <= c[0] <= config.max_objects])
    alike = 3 if count > 3 and dice.chance(0.45) else 2
    texture = dice.weighted(_TEXTURE_WEIGHTS)
    core = (dice.pick(SHAPES), dice.pick(tuple(COLOURS)), texture, dice.pick(SIZES))
    looks = []
    for index in range(count):
        shape, colour, texture, size = core
        if index >= alike:
            shape = shape if dice.chance(0.35) else _other(dice, SHAPES, shape)
            colour = colour if dice.chance(0.3) else _other(dice, tuple(COLOURS), colour)
            texture, size = dice.weighted(_TEXTURE_WEIGHTS), dice.pick(SIZES)
        elif index > 0:
            colour = colour if dice.chance(0.7) else _other(dice, tuple(COLOURS), colour)
            texture = texture if dice.chance(0.75) else _other(dice, TEXTURES, texture)
            size = size if dice.chance(0.7) else _other(dice, SIZES, size)
        looks.append((shape, colour, texture, size))
    return [_thing(config, dice, look) for look in looks], alike


@dataclass
class _Stage:
    """Things placed so far; refuses places that would make look-alikes or the opening picture a muddle."""

    config: SyntheticConfig
    things: list[Thing]
    paths: dict[int, np.ndarray] = field(default_factory=dict)
    moves: dict[int, Move] = field(default_factory=dict)

    def clear(self, index: int, path: np.ndarray, move: Move, overlap: float = 0.3) -> bool:
        """overlap: the share of the time for which a thing may lie over another one."""
        return all(self._apart(index, path, move, other, overlap) for other in self.paths)

    def _apart(self, index: int, path: np.ndarray, move: Move, other: int, overlap: float) -> bool:
        size = (self.config.width, self.config.height)
        mine, theirs = self.things[index], self.things[other]
        reach = mine.radius * move.scale + theirs.radius * self.moves[other].scale
        gap = np.sqrt(((path - self.paths[other]) ** 2).sum(axis=1)) / reach
        seen = np.ones(len(path), bool)
        for track in (path, self.paths[other]):
            seen &= (track > 0).all(axis=1) & (track < size).all(axis=1)
        if not seen.any():
            return True
        if seen[0] and gap[0] < 1.0:
            return False
        if mine.looks == theirs.looks and float(gap[seen].min()) < 1.05:
            return False  # two equal things that melt into one cannot be told apart afterwards
        return float((gap[seen] < 0.65).mean()) < overlap

    def put(self, index: int, path: np.ndarray, move: Move) -> None:
        self.paths[index], self.moves[index] = path, move

    def solo(self, dice: Dice, index: int, taken: set[str]) -> bool:
        """Give a thing a program of its own, other than those of its look-alikes."""
        body = self.things[index].body()
        for _ in range(_PLACEMENTS):
            program = dice.weighted(motion.SOLO)
            move = program(self.config, dice, body)
            path = None if move.name in taken else motion.place(self.config, dice, move, body)
            if path is not None and self.clear(index, path, move):
                self.put(index, path, move)
                return True
        return False


def _camera(config: SyntheticConfig, dice: Dice, moves: list[str]) -> np.ndarray:
    """A slow straight pan of whole pixels, or none."""
    pans = dice.chance(config.pan)
    drift = np.array([dice.uniform(-0.06, 0.06), dice.uniform(-0.03, 0.03)]) * config.unit
    if not pans or "bounce" in moves:
        return np.zeros((config.frames, 2), np.int64)
    return np.rint(drift * (motion.clock(config)[:, None] - 0.5)).astype(np.int64)


def build_scene(config: SyntheticConfig, dice: Dice) -> Scene | None:
    """Draw a scene, or None when its things found no room (draw again)."""
    things, alike = _cast(config, dice)
    stage = _Stage(config, things)
    plot = scenarios.draw(config, dice, [thing.body() for thing in things], alike)
    for index, move in plot.moves.items():
        path = motion.place(config, dice, move, things[index].body())
        if path is None or not stage.clear(index, path, move, overlap=0.65):  # a plot may be about it
            return None
        stage.put(index, path, move)
    for index in dice.shuffled(range(len(things))):
        taken = {stage.moves[other].name for other in stage.moves if other < alike and index < alike}
        if index not in stage.moves and not stage.solo(dice, index, taken):
            return None
    order = dice.shuffled(range(len(things)))
    if plot.behind is not None:
        back, front = plot.behind
        order.remove(back)
        order.insert(order.index(front), back)
    indices = range(len(things))
    moves = [stage.moves[i].name for i in indices]
    return Scene(
        config=config,
        things=things,
        moves=moves,
        world=np.stack([stage.paths[i] for i in indices]),
        scale=np.stack([stage.moves[i].scale for i in indices]),
        angle=np.stack([stage.moves[i].turn + things[i].tilt for i in indices]),
        camera=_camera(config, dice, moves),
        order=order,
    )
