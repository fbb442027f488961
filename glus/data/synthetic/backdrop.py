"""Muted textured backgrounds: value noise, gradients, checkers, planks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from glus.data.synthetic.dice import Dice

# (dark, middle, light) RGB; all little saturated, so that the objects' colours stand out.
PALETTES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((92, 104, 84), (128, 138, 112), (168, 172, 146)),  # meadow
    ((104, 92, 78), (146, 130, 110), (186, 172, 150)),  # sand
    ((74, 86, 98), (112, 126, 138), (158, 170, 178)),  # slate
    ((110, 98, 104), (150, 138, 142), (190, 180, 182)),  # dusk
    ((70, 92, 94), (104, 130, 130), (150, 172, 168)),  # sea
    ((96, 88, 80), (124, 116, 108), (150, 143, 136)),  # stone
    ((118, 118, 114), (158, 157, 152), (196, 195, 190)),  # concrete
    ((84, 72, 64), (120, 102, 88), (158, 138, 120)),  # earth
)


def _noise_layer(dice: Dice, height: int, width: int, cell: float) -> np.ndarray:
    """Smoothly interpolated random grid, float32 [height, width] in [0, 1)."""
    rows, columns = int(height / cell) + 3, int(width / cell) + 3
    grid = dice.grid(rows, columns)

    def steps(length: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.arange(length, dtype=np.float32) / np.float32(cell)
        low = at.astype(np.int64)
        part = at - low.astype(np.float32)
        return low, part * part * (3 - 2 * part)

    y, fy = steps(height)
    x, fx = steps(width)
    rows_mixed = grid[y] + (grid[y + 1] - grid[y]) * fy[:, None]
    return np.asarray(rows_mixed[:, x] + (rows_mixed[:, x + 1] - rows_mixed[:, x]) * fx[None])


def value_noise(dice: Dice, height: int, width: int, cell: float, octaves: int) -> np.ndarray:
    """Fractal value noise stretched to [0, 1], float32 [height, width]."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        total += _noise_layer(dice, height, width, max(cell / 2**octave, 1.5)) * np.float32(0.58**octave)
    low, high = float(total.min()), float(total.max())
    return np.asarray((total - low) / np.float32(max(high - low, 1e-6)), np.float32)


def _ramp(dice: Dice, height: int, width: int) -> np.ndarray:
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None]
    share = np.float32(dice.uniform(0.0, 0.6))
    ramp = y * (1 - share) + (x if dice.chance(0.5) else 1 - x) * share
    return np.asarray(ramp if dice.chance(0.6) else 1 - ramp)


def _checker(dice: Dice, height: int, width: int, unit: int) -> np.ndarray:
    cell = dice.uniform(0.11, 0.2) * unit
    y = (np.arange(height) / cell).astype(np.int64)[:, None]
    x = (np.arange(width) / cell).astype(np.int64)[None]
    return np.asarray(((x + y) % 2), np.float32)


def _planks(dice: Dice, height: int, width: int, unit: int) -> np.ndarray:
    thick = dice.uniform(0.12, 0.2) * unit
    at = np.arange(height) / thick
    row = at.astype(np.int64)
    tone = dice.grid(int(row.max()) + 1, 1)[:, 0][row]
    seam = np.minimum(1.0, (at - row) * thick / 2.0)
    return np.broadcast_to((tone * seam).astype(np.float32)[:, None], (height, width))


def _tone(dice: Dice, height: int, width: int, unit: int) -> np.ndarray:
    """The background as one tone in [0, 1], float32 [height, width]."""
    noise = value_noise(dice, height, width, dice.uniform(0.2, 0.45) * unit, 5)
    kind = dice.weighted((("noise", 3.0), ("ramp", 2.0), ("checker", 1.3), ("planks", 1.0)))
    if kind == "noise":
        return noise
    if kind == "ramp":
        return 0.75 * _ramp(dice, height, width) + 0.25 * noise
    if kind == "checker":
        return 0.28 * _checker(dice, height, width, unit) + 0.5 * noise + 0.11
    return 0.45 * _planks(dice, height, width, unit) + 0.5 * noise


def _contrast(palette: Sequence[Sequence[int]], colours: Sequence[Sequence[float]]) -> float:
    """Smallest RGB distance between a palette's tones and the objects' colours."""
    tones, paints = np.array(palette, np.float64), np.array(colours, np.float64)
    return float(np.sqrt(((tones[:, None] - paints[None]) ** 2).sum(axis=2)).min())


def backdrop(dice: Dice, height: int, width: int, unit: int, colours: Sequence[Sequence[float]]) -> np.ndarray:
    """A background uint8 RGB [height, width, 3] from a palette on which `colours` can be seen."""
    palettes = [dice.pick(PALETTES) for _ in range(4)]
    palette = np.array(max(palettes, key=lambda p: _contrast(p, colours)), np.float32)
    tone = np.clip(_tone(dice, height, width, unit), 0, 1)[..., None]
    low, high = np.minimum(tone * 2, 1), np.maximum(tone * 2 - 1, 0)
    colour = palette[0] + (palette[1] - palette[0]) * low + (palette[2] - palette[1]) * high
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    vignette = 1.04 - 0.09 * (x * x + y * y)
    grain = (dice.grid(height, width)[..., None] - 0.5) * np.float32(7.0)
    return np.asarray(np.clip(np.rint(colour * vignette + grain), 0, 255), np.uint8)
