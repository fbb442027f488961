"""Compiled word operations behind `BitMask`: run-length decoding, boundary maps and boundary matching.

A mask is `uint64[height, ceil(width / 64)]`; pixel x of a row is bit `63 - x % 64` of word `x // 64` (the order
in which PNG packs 1-bit pixels), and bits beyond the width are zero. A boundary map has one zero word of padding
on both sides of each row, so that a window around any pixel can be read without bounds checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic as numba_intrinsic

F = TypeVar("F", bound=Callable[..., Any])


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function given as LLVM instructions; callers leave out its first argument."""
    return cast(Callable[..., Any], numba_intrinsic(function))


def compiled(function: F) -> F:
    """Compile without the interpreter lock; the machine code is cached beside the source."""
    return cast(F, njit(cache=True, nogil=True)(function))


ONE = np.uint64(1)
FULL = np.uint64(0xFFFFFFFFFFFFFFFF)
BITS = np.uint64(64)
LOW7 = np.uint64(0x7F7F7F7F7F7F7F7F)
GATHER = np.uint64(0x8040201008040201)  # moves bit 0 of byte i to bit 63 - i

# What `parse_counts` and `fill_runs` return instead of a length when the text is not a run-length code.
BAD_CHARACTER, UNFINISHED, NEGATIVE_RUN, TOO_LONG, TOO_SHORT = -1, -2, -3, -4, -5


@intrinsic
def popcount(typingctx: Any, word: Any) -> Any:
    """Number of one bits of a uint64 (the processor's instruction)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), generate


@intrinsic
def leading_zeros(typingctx: Any, word: Any) -> Any:
    """Number of zero bits above the highest one bit of a non-zero uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def swap_bytes(typingctx: Any, word: Any) -> Any:
    """The bytes of a uint64 in reverse order."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bswap(args[0])

    return types.uint64(types.uint64), generate


@intrinsic
def load_word(typingctx: Any, data: Any, offset: Any) -> Any:
    """The eight bytes of a contiguous uint8 array from `offset` on, little end first, at any alignment."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = builder.bitcast(builder.gep(array.data, [args[1]]), ir.IntType(64).as_pointer())
        word = builder.load(place)
        word.align = 1
        return word

    return types.uint64(data, types.int64), generate


@intrinsic
def store_word(typingctx: Any, data: Any, offset: Any, word: Any) -> Any:
    """Write eight bytes to a contiguous uint8 array from `offset` on, little end first, at any alignment."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = builder.bitcast(builder.gep(array.data, [args[1]]), ir.IntType(64).as_pointer())
        builder.store(args[2], place).align = 1
        return context.get_dummy_value()

    return types.none(data, types.int64, types.uint64), generate


@compiled
def parse_counts(text: np.ndarray, counts: np.ndarray) -> int:
    """Decode COCO's compressed counts (`text`: uint8) into `counts`; returns how many, or an error code.

    Five bits per character, low first; bit 5 says that more follow, bit 4 of the last is the sign. From the
    fourth on, a number is the difference to the one two places before.
    """
    n = 0
    i = 0
    while i < text.size:
        value = 0
        shift = 0
        more = True
        while more:
            if i >= text.size:
                return UNFINISHED
            c = int(text[i]) - 48
            i += 1
            if c < 0 or c > 63 or shift > 50:
                return BAD_CHARACTER
            value |= (c & 31) << shift
            shift += 5
            more = (c & 32) != 0
            if not more and (c & 16) != 0:
                value |= -1 << shift
        if n > 2:
            value += counts[n - 2]
        if value < 0:
            return NEGATIVE_RUN
        counts[n] = value
        n += 1
    return n


@compiled
def fill_runs(counts: np.ndarray, height: int, width: int, words: np.ndarray) -> int:
    """Draw column-major runs (background first) into the zeroed `words`; returns 0 or an error code.

    The bits where a run begins and ends are toggled, and a running xor down each column fills the rest; a run that
    goes on into the next column also toggles that column's top bit.
    """
    total = height * width
    position = 0
    for i in range(counts.size):
        begin = position
        if counts[i] < 0:
            return NEGATIVE_RUN
        if counts[i] > total - position:
            return TOO_LONG
        position += int(counts[i])
        if i % 2 == 0 or begin == position:
            continue
        first, last = begin // height, position // height
        y = begin - first * height
        words[y, first >> 6] ^= ONE << np.uint64(63 - (first & 63))
        for x in range(first + 1, min(last, width - 1) + 1):
            words[0, x >> 6] ^= ONE << np.uint64(63 - (x & 63))
        if last < width:
            y = position - last * height
            words[y, last >> 6] ^= ONE << np.uint64(63 - (last & 63))
    if position != total:
        return TOO_SHORT
    for y in range(1, height):
        for k in range(words.shape[1]):
            words[y, k] ^= words[y - 1, k]
    return 0


@compiled
def area(words: np.ndarray) -> int:
    """Number of foreground pixels."""
    n = 0
    for y in range(words.shape[0]):
        for k in range(words.shape[1]):
            n += popcount(words[y, k])
    return n


@compiled
def overlap(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Pixels in both masks and pixels in either mask."""
    both = 0
    either = 0
    for y in range(a.shape[0]):
        for k in range(a.shape[1]):
            both += popcount(a[y, k] & b[y, k])
            either += popcount(a[y, k] | b[y, k])
    return both, either


@compiled
def boundary_map(words: np.ndarray, width: int, out: np.ndarray) -> int:
    """Write the padded boundary map of a mask to the zeroed `out`; returns its number of pixels.

    A pixel is boundary when its east, south or south-east neighbour differs; neighbours outside the frame repeat
    the nearest pixel inside (evaluation.md 1.2).
    """
    height, n = words.shape
    last = ONE << np.uint64(63 - ((width - 1) & 63))
    count = 0
    for y in range(height):
        below = min(y + 1, height - 1)
        s = words[y, 0]
        o = words[below, 0]
        for k in range(n):
            if k + 1 < n:
                s_next = words[y, k + 1]
                o_next = words[below, k + 1]
                e = (s << ONE) | (s_next >> np.uint64(63))
                q = (o << ONE) | (o_next >> np.uint64(63))
            else:
                s_next = s
                o_next = o
                e = ((s << ONE) & ~last) | (s & last)
                q = ((o << ONE) & ~last) | (o & last)
            b = (s ^ e) | (s ^ o) | (s ^ q)
            if b != 0:
                out[y, k + 1] = b
                count += popcount(b)
            s = s_next
            o = o_next
    return count


@compiled
def count_matches(a: np.ndarray, b: np.ndarray, radius: int, half: np.ndarray) -> int:
    """Number of pixels of the boundary map `a` that lie in the dilation of `b` by a disk; radius at most 31.

    `half[d]` is the disk's half-width in the row at distance d. Rows are tried from the nearest outwards, and the
    window of a row (2 * radius + 1 pixels) is one 64-bit word whatever its alignment.
    """
    height = a.shape[0]
    masks = np.empty(radius + 1, np.uint64)
    for d in range(radius + 1):
        masks[d] = (FULL << np.uint64(63 - 2 * half[d])) >> np.uint64(radius - half[d])
    filled = np.zeros(height, np.bool_)
    for y in range(height):
        for k in range(1, b.shape[1] - 1):
            if b[y, k] != 0:
                filled[y] = True
                break
    matched = 0
    for y in range(height):
        for k in range(1, a.shape[1] - 1):
            rest = a[y, k]
            if rest == 0:
                continue
            same = rest & b[y, k]
            matched += popcount(same)
            rest ^= same
            while rest != 0:
                lead = leading_zeros(rest)
                rest ^= ONE << np.uint64(63 - lead)
                start = k * 64 + lead - radius
                word = start >> 6
                left = np.uint64(start & 63)
                right = BITS - left
                for d in range(radius + 1):
                    hit = False
                    for row in (y - d, y + d):
                        if row < 0 or row >= height or not filled[row]:
                            continue
                        window = b[row, word] << left
                        if left != 0:
                            window |= b[row, word + 1] >> right
                        if window & masks[d] != 0:
                            hit = True
                            break
                    if hit:
                        matched += 1
                        break
    return matched


@compiled
def count_matches_wide(a: np.ndarray, b: np.ndarray, radius: int, half: np.ndarray) -> int:
    """As `count_matches` for any radius (frames of more than about 3900 pixels diagonal)."""
    height = a.shape[0]
    begin, end = 64, (b.shape[1] - 1) * 64
    matched = 0
    for y in range(height):
        for k in range(1, a.shape[1] - 1):
            rest = a[y, k]
            while rest != 0:
                lead = leading_zeros(rest)
                rest ^= ONE << np.uint64(63 - lead)
                x = k * 64 + lead
                hit = False
                for row in range(max(y - radius, 0), min(y + radius, height - 1) + 1):
                    reach = half[abs(row - y)]
                    low, high = max(x - reach, begin), min(x + reach, end - 1)
                    for j in range(low >> 6, (high >> 6) + 1):
                        window = b[row, j]
                        if j == low >> 6:
                            window &= FULL >> np.uint64(low & 63)
                        if j == high >> 6:
                            window &= FULL << np.uint64(63 - (high & 63))
                        if window != 0:
                            hit = True
                            break
                    if hit:
                        break
                if hit:
                    matched += 1
    return matched


@compiled
def pack_bytes(data: np.ndarray, start: int, stride: int, width: int, words: np.ndarray) -> None:
    """Set the bit of every non-zero byte; row y of `words` comes from `width` bytes at `start + y * stride`.

    `data` is a contiguous uint8 vector; `words` is overwritten.
    """
    for y in range(words.shape[0]):
        at = start + y * stride
        for k in range(words.shape[1]):
            word = np.uint64(0)
            base = at + k * 64
            count = min(64, width - k * 64)
            whole = count >> 3
            for j in range(whole):
                v = load_word(data, base + j * 8)
                if v != 0:
                    high = (((v & LOW7) + LOW7) | v) & ~LOW7
                    word |= (((high >> np.uint64(7)) * GATHER) >> np.uint64(56)) << np.uint64(56 - j * 8)
            for j in range(whole * 8, count):
                if data[base + j] != 0:
                    word |= ONE << np.uint64(63 - j)
            words[y, k] = word


@compiled
def pack_bits(data: np.ndarray, start: int, stride: int, width: int, words: np.ndarray) -> None:
    """As `pack_bytes` from rows of packed bits, high bit first; `data` has 8 readable bytes after its last row."""
    last = FULL << np.uint64(63 - ((width - 1) & 63))
    for y in range(words.shape[0]):
        at = start + y * stride
        for k in range(words.shape[1]):
            words[y, k] = swap_bytes(load_word(data, at + k * 8))
        words[y, words.shape[1] - 1] &= last


@compiled
def split_labels(labels: np.ndarray, slots: np.ndarray, words: np.ndarray) -> None:
    """Separate a label map: pixels of label v go to plane `slots[v]` of the zeroed `words`; slot -1 is dropped."""
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            slot = slots[labels[y, x]]
            if slot >= 0:
                words[slot, y, x >> 6] |= ONE << np.uint64(63 - (x & 63))
