"""A compiled decoder for zlib streams of known length, and the PNG row filters.

Mask PNGs are a few kilobytes that inflate to half a megabyte, nearly all of it long repeats. The decoder of the
standard library copies those byte by byte and takes most of an evaluation's time; this one fills them at memory
speed. The container's CRC (checked by `glus.evaluation.png`) covers the data, so Adler-32 is not computed.
"""

from __future__ import annotations

import numpy as np

from glus.evaluation.kernels import LOW7, compiled, load_word, store_word

# Results of `inflate` other than 0.
TRUNCATED, INVALID, WRONG_LENGTH = -1, -2, -3

SPLAT = np.uint64(0x0101010101010101)
MASK56 = np.uint64((1 << 56) - 1)
_PRIMARY = 10  # bits of the direct look-up table; longer codes are rare and decoded bit by bit
_END, _MAX_BITS = 256, 15

_LENGTH_BASE = np.array(
    [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195,
     227, 258], np.int64
)  # fmt: skip
_LENGTH_EXTRA = np.array([0] * 8 + [n for n in range(1, 6) for _ in range(4)] + [0], np.int64)
_DISTANCE_EXTRA = np.array([0, 0] + [n for n in range(14) for _ in range(2)], np.int64)
_DISTANCE_BASE = np.concatenate([[1], 1 + np.cumsum(1 << _DISTANCE_EXTRA)[:-1]]).astype(np.int64)
_ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15], np.int64)


@compiled
def _build(lengths: np.ndarray, table: np.ndarray, counts: np.ndarray, symbols: np.ndarray) -> bool:
    """Fill the direct table (`symbol << 4 | bits`, 0 = not here) and the canonical lists of one Huffman code.

    Returns False when the lengths are over-subscribed. The gaps of an incomplete code decode as invalid.
    """
    counts[:] = 0
    table[:] = 0
    for n in lengths:
        counts[n] += 1
    counts[0] = 0
    code = 0
    first = np.zeros(_MAX_BITS + 2, np.int64)
    offset = np.zeros(_MAX_BITS + 2, np.int64)
    for bits in range(1, _MAX_BITS + 1):
        code = (code + counts[bits - 1]) << 1
        first[bits] = code
        offset[bits + 1] = offset[bits] + counts[bits]
        if code + counts[bits] > (1 << bits):
            return False
    for symbol in range(lengths.size):
        bits = lengths[symbol]
        if bits == 0:
            continue
        symbols[offset[bits]] = symbol
        offset[bits] += 1
        code = first[bits]
        first[bits] += 1
        if bits <= _PRIMARY:
            reverse = 0
            for i in range(bits):
                reverse |= ((code >> i) & 1) << (bits - 1 - i)
            for i in range(reverse, 1 << _PRIMARY, 1 << bits):
                table[i] = (symbol << 4) | bits
    return True


@compiled
def _long_code(bits: int, counts: np.ndarray, symbols: np.ndarray) -> int:
    """Decode a code by canonical search from the 15 bits that come next; `symbol << 4 | length`, or 0."""
    code = first = index = 0
    for length in range(1, _MAX_BITS + 1):
        code |= (bits >> (length - 1)) & 1
        if code - counts[length] < first:
            return (symbols[index + code - first] << 4) | length
        index += counts[length]
        first = (first + counts[length]) << 1
        code <<= 1
    return 0


@compiled
def _peek(source: np.ndarray, at: int) -> int:
    """At least 56 bits from bit position `at` on."""
    return int((load_word(source, at >> 3) >> np.uint64(at & 7)) & MASK56)


@compiled
def _dynamic_lengths(source: np.ndarray, at: int, lengths: np.ndarray) -> tuple[int, int, int]:
    """Read a dynamic block's code lengths; returns (bit position or -1, literal codes, distance codes)."""
    head = _peek(source, at)
    n_literal, n_distance, n_code = (head & 31) + 257, ((head >> 5) & 31) + 1, ((head >> 10) & 15) + 4
    at += 14
    table = np.empty(1 << _PRIMARY, np.int64)
    counts = np.empty(_MAX_BITS + 1, np.int64)
    symbols = np.empty(288, np.int64)
    small = np.zeros(19, np.int64)
    for i in range(n_code):
        if at > source.size * 8 - 64:
            return -1, 0, 0
        small[_ORDER[i]] = _peek(source, at) & 7
        at += 3
    if n_literal > 286 or n_distance > 30 or not _build(small, table, counts, symbols):
        return -1, 0, 0
    n = 0
    while n < n_literal + n_distance:
        if at > source.size * 8 - 64:
            return -1, 0, 0
        bits = _peek(source, at)
        entry = table[bits & ((1 << _PRIMARY) - 1)]
        if entry == 0:
            return -1, 0, 0
        bits >>= entry & 15
        at += entry & 15
        symbol = entry >> 4
        value, repeat = symbol, 1
        if symbol == 16:
            value, repeat = lengths[max(n - 1, 0)], 3 + (bits & 3)
            at += 2
        elif symbol == 17:
            value, repeat = 0, 3 + (bits & 7)
            at += 3
        elif symbol == 18:
            value, repeat = 0, 11 + (bits & 127)
            at += 7
        if n + repeat > n_literal + n_distance or (symbol == 16 and n == 0):
            return -1, 0, 0
        lengths[n : n + repeat] = value
        n += repeat
    return at, n_literal, n_distance


@compiled
def _copy(out: np.ndarray, at: int, distance: int, length: int) -> None:
    """Repeat the `length` bytes that lie `distance` before `at`; the two may overlap.

    Works in words where it can and then writes up to 7 bytes too many: the padding of `out` takes them.
    """
    if distance == 1:
        word = np.uint64(out[at - 1]) * SPLAT
        for i in range(at, at + length, 8):
            store_word(out, i, word)
    elif distance >= 8:
        for i in range(at, at + length, 8):
            store_word(out, i, load_word(out, i - distance))
    else:
        for i in range(at, at + length):
            out[i] = out[i - distance]


@compiled
def _block(
    source: np.ndarray, at: int, out: np.ndarray, done: int, literal: tuple, distance: tuple
) -> tuple[int, int]:
    """Decode one compressed block; returns (bit position or an error code, bytes written so far)."""
    end = source.size * 8 - 64
    room = out.size - 8
    while True:
        if at > end:
            return TRUNCATED, done
        bits = _peek(source, at)
        entry = literal[0][bits & ((1 << _PRIMARY) - 1)]
        if entry == 0:
            entry = _long_code(bits, literal[1], literal[2])
        used = entry & 15
        symbol = entry >> 4
        if used == 0 or symbol > 285:
            return INVALID, done
        if symbol < _END:
            if done >= room:
                return WRONG_LENGTH, done
            out[done] = symbol
            done += 1
            at += used
            continue
        if symbol == _END:
            return (at + used if at + used <= end else TRUNCATED), done
        bits >>= used
        extra = _LENGTH_EXTRA[symbol - 257]
        length = _LENGTH_BASE[symbol - 257] + (bits & ((1 << extra) - 1))
        bits >>= extra
        used += extra
        entry = distance[0][bits & ((1 << _PRIMARY) - 1)]
        if entry == 0:
            entry = _long_code(bits, distance[1], distance[2])
        symbol = entry >> 4
        if entry & 15 == 0 or symbol > 29:
            return INVALID, done
        bits >>= entry & 15
        extra = _DISTANCE_EXTRA[symbol]
        back = _DISTANCE_BASE[symbol] + (bits & ((1 << extra) - 1))
        if back > done:
            return INVALID, done
        if done + length > room:
            return WRONG_LENGTH, done
        at += used + (entry & 15) + extra
        _copy(out, done, back, length)
        done += length


@compiled
def _stored(source: np.ndarray, at: int, out: np.ndarray, done: int) -> tuple[int, int]:
    """Copy one block that is not compressed; returns as `_block` does."""
    size = source.size - 8
    begin = (at + 7) >> 3
    if begin + 4 > size:
        return TRUNCATED, done
    length = source[begin] + source[begin + 1] * 256
    if length + source[begin + 2] + source[begin + 3] * 256 != 65535:
        return INVALID, done
    begin += 4
    if begin + length > size:
        return TRUNCATED, done
    if done + length > out.size - 8:
        return WRONG_LENGTH, done
    out[done : done + length] = source[begin : begin + length]
    return (begin + length) * 8, done + length


@compiled
def inflate(source: np.ndarray, out: np.ndarray) -> int:
    """Decode the zlib stream `source` into `out`; both uint8 and followed by 8 bytes of padding.

    Returns 0 when the stream is whole and fills `out` exactly, else TRUNCATED, INVALID or WRONG_LENGTH.
    """
    size = source.size - 8
    if size < 2:
        return TRUNCATED
    if source[0] & 15 != 8 or (source[0] * 256 + source[1]) % 31 != 0 or source[1] & 32 != 0:
        return INVALID
    tables = np.empty((2, 1 << _PRIMARY), np.int64)
    counts = np.empty((2, _MAX_BITS + 1), np.int64)
    symbols = np.empty((2, 288), np.int64)
    lengths = np.zeros(320, np.int64)
    at, done = 16, 0
    final = False
    while not final:
        if at > size * 8:
            return TRUNCATED
        head = _peek(source, at)
        final = head & 1 == 1
        kind = (head >> 1) & 3
        at += 3
        if kind == 0:
            at, done = _stored(source, at, out, done)
            if at < 0:
                return at
            continue
        if kind == 3:
            return INVALID
        n_literal, n_distance = 288, 30
        if kind == 1:
            lengths[:144] = 8
            lengths[144:256] = 9
            lengths[256:280] = 7
            lengths[280:288] = 8
            lengths[288:318] = 5
        else:
            at, n_literal, n_distance = _dynamic_lengths(source, at, lengths)
            if at < 0:
                return INVALID
        literal = lengths[:n_literal]
        distance = lengths[n_literal : n_literal + n_distance]
        if not _build(literal, tables[0], counts[0], symbols[0]):
            return INVALID
        if not _build(distance, tables[1], counts[1], symbols[1]):
            return INVALID
        at, done = _block(
            source, at, out, done, (tables[0], counts[0], symbols[0]), (tables[1], counts[1], symbols[1])
        )
        if at < 0:
            return at
    return 0 if done == out.size - 8 else WRONG_LENGTH


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
