"""The row filters of PNG undone in place, compiled; runs of equal pixels, most of a mask, go by the word."""

from __future__ import annotations

import numpy as np

from glus.evaluation.kernels import LOW7, compiled, load_word, store_word

SPLAT = np.uint64(0x0101010101010101)


@compiled
def _unfilter_sub(row: np.ndarray, begin: int) -> None:
    """Undo "difference to the left" for one byte per pixel; runs (eight zero differences) go by the word."""
    left = np.uint8(0)
    i = begin
    end = row.size
    while i < end:
        if i + 8 <= end and load_word(row, i) == 0:
            if left != 0:
                store_word(row, i, np.uint64(left) * SPLAT)
            i += 8
        else:
            stop = min(i + 8, end)
            while i < stop:
                left = np.uint8(left + row[i])
                row[i] = left
                i += 1


@compiled
def _unfilter_up(row: np.ndarray, above: np.ndarray, begin: int) -> None:
    """Undo "difference to the row above", eight bytes at a time."""
    i = begin
    while i + 8 <= row.size:
        d, b = load_word(row, i), load_word(above, i)
        store_word(row, i, ((d & LOW7) + (b & LOW7)) ^ ((d ^ b) & ~LOW7))
        i += 8
    while i < row.size:
        row[i] = np.uint8(row[i] + above[i])
        i += 1


@compiled
def _unfilter_paeth(row: np.ndarray, above: np.ndarray, begin: int, step: int) -> None:
    """Undo "difference to the Paeth predictor".

    Where the pixel to the left equals the one above it (one byte per pixel), eight zero differences copy the row
    above: the predictor picks it for the first, which keeps the condition true for the next.
    """
    i = begin
    while i < row.size:
        a = int(row[i - step]) if i >= begin + step else 0
        c = int(above[i - step]) if i >= begin + step else 0
        if step == 1 and a == c and i + 8 <= row.size and load_word(row, i) == 0:
            store_word(row, i, load_word(above, i))
            i += 8
            continue
        b = int(above[i])
        pa, pb, pc = abs(b - c), abs(a - c), abs(a + b - 2 * c)
        best = a if pa <= pb and pa <= pc else (b if pb <= pc else c)
        row[i] = np.uint8(row[i] + best)
        i += 1


@compiled
def unfilter(rows: np.ndarray, step: int) -> bool:
    """Undo the PNG row filters in place; `rows` is uint8 [height, 1 + bytes per row], `step` bytes per pixel.

    Returns False on an unknown filter number.
    """
    height, n = rows.shape
    above = np.zeros(n, np.uint8)
    for y in range(height):
        row = rows[y]
        kind = row[0]
        if kind == 1 and step == 1:
            _unfilter_sub(row, 1)
        elif kind == 1:
            for i in range(1 + step, n):
                row[i] = np.uint8(row[i] + row[i - step])
        elif kind == 2:
            _unfilter_up(row, above, 1)
        elif kind == 3:
            for i in range(1, n):
                left = int(row[i - step]) if i > step else 0
                row[i] = np.uint8(row[i] + ((left + above[i]) >> 1))
        elif kind == 4:
            _unfilter_paeth(row, above, 1, step)
        elif kind != 0:
            return False
        above = row
    return True
