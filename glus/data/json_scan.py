"""Compiled walk over the bytes of a mask file, `{"<annotation>": [{run-length code} or null, ...], ...}`.

Nothing is built but positions, so that gigabytes take seconds. The grammar is checked throughout. A function
returns the position after what it read, or `-1 - position` of the byte that does not fit, which is the length of
the file when that ends too early.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glus.evaluation.kernels import compiled

Bytes = NDArray[np.uint8]

MAX_DEPTH = 32
"""Containers within one entry; a run-length code has two."""

# What `scan_track` found, in `found[0]`
TRACK, NO_JSON, NO_TRACK, NO_ENTRY, FULL = 0, 1, 2, 3, 4

_QUOTE, _BACKSLASH, _COMMA, _COLON = 34, 92, 44, 58
_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST = 123, 125, 91, 93
_NULL = np.frombuffer(b"null", np.uint8)
_TRUE = np.frombuffer(b"true", np.uint8)
_FALSE = np.frombuffer(b"false", np.uint8)


@compiled
def skip_space(data: Bytes, pos: int) -> int:
    """Position of the next byte that is no white space."""
    while pos < len(data) and (data[pos] == 32 or data[pos] == 10 or data[pos] == 13 or data[pos] == 9):
        pos += 1
    return pos


@compiled
def skip_string(data: Bytes, pos: int) -> int:
    """A string that begins at `pos`."""
    if pos >= len(data) or data[pos] != _QUOTE:
        return -1 - pos
    pos += 1
    while pos < len(data):
        byte = data[pos]
        if byte == _QUOTE:
            return pos + 1
        if byte < 32:
            return -1 - pos
        if byte == _BACKSLASH:
            pos += 1
            if pos >= len(data):
                break
            byte = data[pos]
            # " \ / b f n r t u
            simple = byte == 34 or byte == 92 or byte == 47 or byte == 98 or byte == 102 or byte == 110
            if byte == 117:
                for _ in range(4):
                    pos += 1
                    if pos >= len(data):
                        return -1 - pos
                    digit = data[pos]
                    if not (48 <= digit <= 57 or 65 <= digit <= 70 or 97 <= digit <= 102):
                        return -1 - pos
            elif not (simple or byte == 114 or byte == 116):
                return -1 - pos
        pos += 1
    return -1 - len(data)


@compiled
def _skip_word(data: Bytes, pos: int, word: Bytes) -> int:
    for letter in word:
        if pos >= len(data) or data[pos] != letter:
            return -1 - pos
        pos += 1
    return pos


@compiled
def _skip_digits(data: Bytes, pos: int) -> int:
    """At least one digit."""
    start = pos
    while pos < len(data) and 48 <= data[pos] <= 57:
        pos += 1
    return pos if pos > start else -1 - pos


@compiled
def _skip_number(data: Bytes, pos: int) -> int:
    if data[pos] == 45:
        pos += 1
    leading_zero = pos < len(data) and data[pos] == 48
    pos = pos + 1 if leading_zero else _skip_digits(data, pos)
    if pos >= 0 and pos < len(data) and data[pos] == 46:
        pos = _skip_digits(data, pos + 1)
    if pos >= 0 and pos < len(data) and (data[pos] == 69 or data[pos] == 101):
        pos += 1
        if pos < len(data) and (data[pos] == 43 or data[pos] == 45):
            pos += 1
        pos = _skip_digits(data, pos)
    return pos


@compiled
def _skip_key(data: Bytes, pos: int) -> int:
    """A key and its colon, white space before each."""
    pos = skip_string(data, skip_space(data, pos))
    if pos < 0:
        return pos
    pos = skip_space(data, pos)
    return pos + 1 if pos < len(data) and data[pos] == _COLON else -1 - pos


@compiled
def skip_value(data: Bytes, pos: int, stack: Bytes) -> int:
    """Any value, white space before it. `stack` is scratch space of `MAX_DEPTH` bytes."""
    depth = 0
    while True:
        pos = skip_space(data, pos)
        if pos >= len(data):
            return -1 - pos
        byte = data[pos]
        if byte in (_OPEN, _OPEN_LIST):
            if depth == MAX_DEPTH:
                return -1 - pos
            after = skip_space(data, pos + 1)
            if after < len(data) and data[after] == byte + 2:  # } and ] lie 2 above { and [
                pos = after + 1
            else:
                stack[depth] = byte
                depth += 1
                pos = _skip_key(data, pos + 1) if byte == _OPEN else pos + 1
                if pos < 0:
                    return pos
                continue
        elif byte == _QUOTE:
            pos = skip_string(data, pos)
        elif byte == 110:
            pos = _skip_word(data, pos, _NULL)
        elif byte == 116:
            pos = _skip_word(data, pos, _TRUE)
        elif byte == 102:
            pos = _skip_word(data, pos, _FALSE)
        else:
            pos = _skip_number(data, pos)
        if pos < 0:
            return pos
        more = False
        while depth > 0 and not more:
            pos = skip_space(data, pos)
            if pos >= len(data):
                return -1 - pos
            if data[pos] == stack[depth - 1] + 2:
                depth -= 1
                pos += 1
            elif data[pos] == _COMMA:
                more = True
                pos = _skip_key(data, pos + 1) if stack[depth - 1] == _OPEN else pos + 1
                if pos < 0:
                    return pos
            else:
                return -1 - pos
        if not more:
            return pos


@compiled
def scan_track(
    data: Bytes,
    pos: int,
    found: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    stack: Bytes,
) -> int:
    """One annotation with its list, white space before it.

    Args:
        found: written: what it is (`TRACK`, or which part does not fit), where its key begins and ends, and the
            number of entries. With `FULL` there are more entries than `starts` has places; nothing is lost,
            call again with more.
        starts, ends: written: where each entry lies; both 0 for null.
        stack: scratch space of `MAX_DEPTH` bytes.
    """
    found[0], pos = NO_JSON, skip_space(data, pos)
    found[1] = pos
    pos = skip_string(data, pos)
    if pos < 0:
        return pos
    found[2] = pos
    pos = skip_space(data, pos)
    if pos >= len(data) or data[pos] != _COLON:
        return -1 - pos
    pos = skip_space(data, pos + 1)
    if pos >= len(data) or data[pos] != _OPEN_LIST:
        found[0] = NO_TRACK
        return -1 - pos
    count = 0
    pos = skip_space(data, pos + 1)
    closed = pos < len(data) and data[pos] == _CLOSE_LIST
    while not closed:
        pos = skip_space(data, pos)
        found[3] = count
        if count == len(starts):
            found[0] = FULL
            return -1 - pos
        if pos < len(data) and data[pos] == _OPEN:
            starts[count] = pos
            pos = skip_value(data, pos, stack)
            ends[count] = pos
        elif pos < len(data) and data[pos] == 110:
            starts[count], ends[count] = 0, 0
            pos = _skip_word(data, pos, _NULL)
        else:
            found[0] = NO_ENTRY
            pos = -1 - pos
        if pos < 0:
            return pos
        count += 1
        pos = skip_space(data, pos)
        closed = pos < len(data) and data[pos] == _CLOSE_LIST
        if not closed:
            if pos >= len(data) or data[pos] != _COMMA:
                return -1 - pos
            pos += 1
    found[0], found[3] = TRACK, count
    return pos + 1
