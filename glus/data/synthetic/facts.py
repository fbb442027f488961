"""What a viewer can see each object do: measurements over the simulated video, in units of the shorter side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from glus.data.synthetic.render import Coverage
from glus.data.synthetic.scene import Scene

TRUE, UNSURE, FALSE = 1, 0, -1


def verdict(yes: bool, no: bool) -> int:
    """TRUE or FALSE only when the margins leave no doubt; a claim that is both is a doubt."""
    return UNSURE if yes == no else TRUE if yes else FALSE


def both(*values: int) -> int:
    """Kleene conjunction."""
    return min(values)


def rise(values: np.ndarray) -> float:
    """The largest increase from an earlier to a later value (0 or more)."""
    return float((values - np.minimum.accumulate(values)).max())


def turning_points(values: np.ndarray, height: float) -> list[int]:
    """Indices of the inner extrema between swings of at least `height`."""
    points: list[int] = []
    low = high = 0
    heading = 0
    for i, value in enumerate(values):
        low = i if value < values[low] else low
        high = i if value > values[high] else high
        if heading >= 0 and value <= values[high] - height:
            if heading:
                points.append(high)
            heading, low, high = -1, i, i
        elif heading <= 0 and value >= values[low] + height:
            if heading:
                points.append(low)
            heading, low, high = 1, i, i
    return points


@dataclass(frozen=True)
class Track:
    """One object over the frames in which a good part of it lies in the picture (T frames, n in view).

    path: float [n, 2] centres fixed to the background; screen: float [n, 2]; first, last: frame numbers.
    inside, visible: float [T] shares of the whole object inside the picture and seen; radius: float [T];
    angle: float [T] radians; gaps: float [n, 4] from the object's left, top, right, bottom to the picture's edge.
    """

    frames: int
    first: int
    last: int
    path: np.ndarray
    screen: np.ndarray
    inside: np.ndarray
    visible: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    gaps: np.ndarray

    @cached_property
    def offset(self) -> np.ndarray:
        """float [n, 2], the path from its own start."""
        return np.asarray(self.path - self.path[0])

    @cached_property
    def net(self) -> np.ndarray:
        return np.asarray(self.offset[-1])

    @cached_property
    def span(self) -> float:
        """Largest extent of the path along x or y."""
        return float((self.path.max(axis=0) - self.path.min(axis=0)).max())

    @cached_property
    def bend(self) -> float:
        """Largest distance of the path from the straight line between its ends."""
        length = float(np.sqrt((self.net**2).sum()))
        if length < 0.02:
            return float(np.sqrt((self.offset**2).sum(axis=1)).max())
        across = self.offset[:, 0] * self.net[1] - self.offset[:, 1] * self.net[0]
        return float(np.abs(across).max() / length)

    @cached_property
    def retreat(self) -> float:
        """How far it goes back against its net movement."""
        length = float(np.sqrt((self.net**2).sum()))
        if length < 0.02:
            return float(np.sqrt((self.offset**2).sum(axis=1)).max())
        return rise(-(self.offset @ self.net) / length)

    @cached_property
    def speed(self) -> np.ndarray:
        """float [m], over an eighth of the clip at a time, in units per clip; zero if hardly ever in view."""
        window = max(1, round(self.frames / 8))
        if len(self.path) <= window:
            return np.zeros(1)
        step = np.sqrt(((self.path[window:] - self.path[:-window]) ** 2).sum(axis=1)) / window
        return np.asarray(step * (self.frames - 1))

    def along(self, heading: tuple[float, float]) -> tuple[float, float, float]:
        """(progress, retreat, sideways extent) of the path relative to a unit vector."""
        forward = self.offset @ np.array(heading)
        sideways = self.offset @ np.array((-heading[1], heading[0]))
        return rise(forward), rise(-forward), float(sideways.max() - sideways.min())

    @cached_property
    def resting(self) -> bool:
        return self.span <= 0.012

    @cached_property
    def whole_clip(self) -> bool:
        return self.first == 0 and self.last == self.frames - 1

    def rest_at_end(self, backwards: bool = False) -> int:
        """Frames in a row at the end (or the start) without movement, among those in view."""
        path = self.path[::-1] if backwards else self.path
        distance = np.sqrt(((path - path[-1]) ** 2).sum(axis=1))
        moving = np.flatnonzero(distance > 0.012)
        return len(path) - 1 - int(moving[-1]) if len(moving) else len(path)

    @cached_property
    def longest_rest(self) -> int:
        """Frames of the longest stretch without movement."""
        best, start = 1, 0
        for end in range(len(self.path)):
            while (np.abs(self.path[start : end + 1] - self.path[end]) > 0.012).any():
                start += 1
            best = max(best, end + 1 - start)
        return best


@dataclass(frozen=True)
class Facts:
    """Everything sentences are checked against.

    screen: float [O, T, 2] centres; radius: float [O, T]; inside, visible: float [O, T]; covered: float
    [O, O, T], share of the first object hidden by the second. Lengths in units, width and height too.
    """

    width: float
    height: float
    frames: int
    tracks: list[Track]
    world: np.ndarray
    screen: np.ndarray
    radius: np.ndarray
    inside: np.ndarray
    visible: np.ndarray
    covered: np.ndarray

    def distance(self, i: int, j: int) -> np.ndarray:
        """float [T] between two centres."""
        return np.asarray(np.sqrt(((self.world[i] - self.world[j]) ** 2).sum(axis=1)))

    def shared(self, i: int, j: int) -> slice:
        """The frames in which both are in view (may be empty)."""
        return slice(
            max(self.tracks[i].first, self.tracks[j].first), min(self.tracks[i].last, self.tracks[j].last) + 1
        )


def _track(scene: Scene, coverage: Coverage, i: int, inside: np.ndarray, visible: np.ndarray) -> Track | None:
    unit, seen = scene.config.unit, np.flatnonzero(inside >= 0.25)
    if len(seen) < 3:
        return None
    window = slice(int(seen[0]), int(seen[-1]) + 1)
    box, size = coverage.box[i][window], np.array([scene.config.width, scene.config.height])
    return Track(
        frames=scene.config.frames,
        first=window.start,
        last=window.stop - 1,
        path=scene.world[i][window] / unit,
        screen=scene.screen[i][window] / unit,
        inside=inside,
        visible=visible,
        radius=scene.radius[i] / unit,
        angle=scene.angle[i],
        gaps=np.concatenate([box[:, :2], size - box[:, 2:]], axis=1) / unit,
    )


def measure(scene: Scene, coverage: Coverage) -> Facts | None:
    """Facts of a scene; None when an object is hardly ever to be seen, so that nothing can be said of it."""
    inside, visible = coverage.inside / coverage.full, coverage.visible / coverage.full
    unit = scene.config.unit
    tracks = [
        track
        for i in range(len(scene.things))
        if (track := _track(scene, coverage, i, inside[i], visible[i])) is not None
    ]
    enough = (visible >= 0.5).mean(axis=1) >= 0.3
    if len(tracks) < len(scene.things) or not enough.all():
        return None
    return Facts(
        width=scene.config.width / unit,
        height=scene.config.height / unit,
        frames=scene.config.frames,
        tracks=tracks,
        world=scene.world / unit,
        screen=scene.screen / unit,
        radius=scene.radius / unit,
        inside=inside,
        visible=visible,
        covered=coverage.covered / coverage.full[:, None],
    )
