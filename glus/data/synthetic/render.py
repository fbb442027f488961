"""From a scene to pixels: coverage and visibility first, then paint.

Only integer rasterisation and elementary float arithmetic, so that the same scene gives the same bytes on any
processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from glus.data.synthetic.backdrop import backdrop
from glus.data.synthetic.dice import Dice
from glus.data.synthetic.scene import Scene, Thing
from glus.data.synthetic.shapes import Patch, rasterise

_SHADOW = 0.36
_VISIBLE = 128  # alpha from which a pixel belongs to an object


@dataclass(frozen=True)
class Coverage:
    """Who covers what, O objects, T frames.

    patches: [O][T]; labels: uint8 [T, H, W], 0 background, i + 1 object i in front. full, inside, visible:
    int [O, T] pixels of the whole object, of its part inside the picture, and of what is seen of it.
    covered: int [O, O, T], pixels of the first index lost to the second. box: float [O, T, 4], x0 y0 x1 y1 of
    the whole object on screen.
    """

    patches: list[list[Patch]]
    labels: np.ndarray
    full: np.ndarray
    inside: np.ndarray
    visible: np.ndarray
    covered: np.ndarray
    box: np.ndarray

    def masks(self) -> np.ndarray:
        """bool [O, T, H, W], the visible part of every object."""
        numbers = np.arange(1, len(self.patches) + 1, dtype=np.uint8)
        return np.asarray(self.labels[None] == numbers[:, None, None, None])


def cover(scene: Scene) -> Coverage:
    """Rasterise all objects at all frames in depth order."""
    config, count = scene.config, len(scene.things)
    screen, radius = scene.screen, scene.radius
    patches = [
        [
            rasterise(thing.shape, screen[i, t, 0], screen[i, t, 1], radius[i, t], scene.angle[i, t])
            for t in range(config.frames)
        ]
        for i, thing in enumerate(scene.things)
    ]
    labels = np.zeros((config.frames, config.height, config.width), np.uint8)
    full = np.zeros((count, config.frames), np.int64)
    inside, visible = np.zeros_like(full), np.zeros_like(full)
    covered = np.zeros((count, count, config.frames), np.int64)
    box = np.zeros((count, config.frames, 4))
    for t in range(config.frames):
        parts = {}
        for i in scene.order:
            patch = patches[i][t]
            solid = patch.alpha >= _VISIBLE
            to, source = patch.clip(config.width, config.height)
            parts[i] = (to, solid[source])
            labels[t][to][parts[i][1]] = i + 1
            rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
            full[i, t], inside[i, t] = np.count_nonzero(solid), np.count_nonzero(parts[i][1])
            box[i, t] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            box[i, t] += (patch.x, patch.y, patch.x, patch.y)
        for i, (to, solid) in parts.items():
            counts = np.bincount(labels[t][to][solid], minlength=count + 1)[1:]
            visible[i, t] = counts[i]
            covered[i, :, t] = counts
            covered[i, i, t] = 0
    return Coverage(patches, labels, full, inside, visible, covered, box)


def _triangle_wave(values: np.ndarray) -> np.ndarray:
    """Period 1, range [0, 1]."""
    part = values - np.floor(values)
    return np.asarray(np.abs(part * 2 - 1))


def _pattern(thing: Thing, x: np.ndarray, y: np.ndarray, angle: float, radius: float) -> np.ndarray | None:
    """How much of the second colour shows, float32 [h, w] in [0, 1]; x, y are pixels from the centre."""
    if thing.texture == "plain":
        return None
    turn = angle + thing.grain
    cos, sin = np.float32(math.cos(turn) / radius), np.float32(math.sin(turn) / radius)
    u, v = x * cos + y * sin, y * cos - x * sin
    if thing.texture == "striped":
        sharp = np.float32(0.25 * radius)
        return np.asarray(np.clip((_triangle_wave(u * np.float32(1.75)) - 0.5) * sharp + 0.5, 0, 1))
    pitch = np.float32(1.7)
    du, dv = _triangle_wave(u * pitch) / 2, _triangle_wave(v * pitch) / 2  # 0 at a dot's centre
    distance = np.sqrt(du * du + dv * dv)
    return np.asarray(np.clip((np.float32(0.29) - distance) * np.float32(0.6 * radius) + 0.5, 0, 1))


def _second_colour(rgb: np.ndarray) -> np.ndarray:
    """Stripes and dots: darker on light objects, lighter on dark ones, and never so much that white things look
    like black ones."""
    bright = float(rgb @ np.array([0.3, 0.59, 0.11], np.float32))
    if bright > 120:
        return np.asarray(rgb * np.float32(0.66 if bright > 225 else 0.5))
    return np.asarray(rgb + (255 - rgb) * np.float32(0.36 if bright < 60 else 0.62))


def _light(alpha: np.ndarray, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Brightness with light from the top left: a slope over the body and a bevel at the rim, float32 [h, w]."""
    reach = max(1, round(radius * 0.09))
    size = 2 * max(1, round(radius * 0.13)) + 1
    soft = cv2.blur(alpha, (size, size)).astype(np.float32)
    padded = np.pad(soft, reach)
    bevel = padded[2 * reach :, 2 * reach :] - padded[: -2 * reach, : -2 * reach]  # lower right minus upper left
    rim = np.clip((soft - 128) / 100, 0, 1)
    slope = (x + y) * np.float32(-0.11 / radius)
    return np.asarray((1 + slope + bevel * np.float32(0.2 / 255)) * (0.8 + 0.2 * rim))


def _paint(picture: np.ndarray, thing: Thing, patch: Patch, place: tuple[float, float, float, float]) -> None:
    """Draw a shadow and the object over `picture` (uint8 RGB [H, W, 3]); place: x, y, radius, angle."""
    height, width = picture.shape[:2]
    cx, cy, radius, angle = place
    blur = 2 * max(1, round(radius * 0.12)) + 1
    shadow = cv2.blur(cv2.blur(patch.alpha, (blur, blur)), (blur, blur))
    to, source = patch.clip(width, height, round(radius * 0.1), round(radius * 0.17))
    if shadow[source].size:
        dark = 1 - shadow[source].astype(np.float32) * np.float32(_SHADOW / 255)
        picture[to] = np.rint(picture[to] * dark[..., None])
    to, source = patch.clip(width, height)
    if not patch.alpha[source].any():
        return
    rows, columns = patch.alpha.shape
    y = (np.arange(rows, dtype=np.float32) + np.float32(patch.y + 0.5 - cy))[:, None]
    x = (np.arange(columns, dtype=np.float32) + np.float32(patch.x + 0.5 - cx))[None]
    rgb = np.array(thing.rgb, np.float32)
    pattern = _pattern(thing, x, y, angle, radius)
    colour = rgb if pattern is None else rgb + (_second_colour(rgb) - rgb) * pattern[..., None]
    lit = np.clip(colour * _light(patch.alpha, x, y, radius)[..., None], 0, 255)
    alpha = (patch.alpha[source].astype(np.float32) / 255)[..., None]
    under = picture[to].astype(np.float32)
    picture[to] = np.rint(under + (lit[source] - under) * alpha)


def paint(scene: Scene, coverage: Coverage, dice: Dice) -> np.ndarray:
    """The frames of a scene, uint8 RGB [T, H, W, 3]."""
    config = scene.config
    low, high = scene.camera.min(axis=0), scene.camera.max(axis=0)
    wide, tall = config.width + int(high[0] - low[0]), config.height + int(high[1] - low[1])
    ground = backdrop(dice, tall, wide, config.unit, [thing.rgb for thing in scene.things])
    frames = np.empty((config.frames, config.height, config.width, 3), np.uint8)
    screen, radius = scene.screen, scene.radius
    for t in range(config.frames):
        x0, y0 = (int(n) for n in scene.camera[t] - low)
        frames[t] = ground[y0 : y0 + config.height, x0 : x0 + config.width]
        for i in scene.order:
            place = (screen[i, t, 0], screen[i, t, 1], radius[i, t], scene.angle[i, t])
            _paint(frames[t], scene.things[i], coverage.patches[i][t], place)
    return frames
