"""Mask files: the own PNG decoder against the stock ones, what counts as foreground, and damaged files."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from definition import random_mask
from PIL import Image

from glus.errors import InputError
from glus.evaluation import png
from glus.masks import decode_rle, encode_rle, read_mask, write_mask_png

SIZES = [(1, 1), (3, 8), (9, 64), (17, 65), (40, 131)]


def labels_of(rng: np.random.Generator, height: int, width: int) -> Any:
    return (random_mask(rng, height, width) * rng.integers(1, 256, (height, width))).astype(np.uint8)


def test_written_masks_are_what_every_reader_sees(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for size in SIZES * 4:
        mask = random_mask(rng, *size)
        write_mask_png(tmp_path / "m.png", mask)
        assert np.array_equal(read_mask(tmp_path / "m.png"), mask)
        assert np.array_equal(cv2.imread(str(tmp_path / "m.png"), cv2.IMREAD_GRAYSCALE), mask * np.uint8(255))
        assert np.array_equal(png.read_mask_opencv(tmp_path / "m.png").unpack(), mask)
        with Image.open(tmp_path / "m.png") as image:
            assert image.mode == "1"
            assert np.array_equal(np.asarray(image), mask)
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


@pytest.mark.parametrize("row_filter", [cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_FILTER_SUB,
                                        cv2.IMWRITE_PNG_FILTER_UP, cv2.IMWRITE_PNG_FILTER_AVG,
                                        cv2.IMWRITE_PNG_FILTER_PAETH, cv2.IMWRITE_PNG_ALL_FILTERS])  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_all_filters_depths_and_channels(tmp_path: Path, row_filter: int, channels: int, dtype: Any) -> None:
    rng = np.random.default_rng(row_filter + channels)
    for k, size in enumerate(SIZES):
        gray = labels_of(rng, *size).astype(dtype)
        image = gray if channels == 1 else np.zeros((*size, channels), dtype)
        if channels > 1:
            image[:, :, k % 3] = gray
        if channels == 4:
            image[:, :, 3] = np.iinfo(dtype).max
        options = [cv2.IMWRITE_PNG_FILTER, row_filter, cv2.IMWRITE_PNG_COMPRESSION, k]
        assert cv2.imwrite(str(tmp_path / "m.png"), image, options)
        assert np.array_equal(read_mask(tmp_path / "m.png"), gray != 0)
        if channels == 1 and dtype == np.uint8:
            assert np.array_equal(png.read_labels(tmp_path / "m.png"), gray)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_is_read_by_index(tmp_path: Path, bits: int) -> None:
    """An index whose colour is black is an object all the same."""
    rng = np.random.default_rng(bits)
    for size in SIZES:
        labels = labels_of(rng, *size) & ((1 << bits) - 1)
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette([0] * 3 * (1 << bits))
        image.save(tmp_path / "m.png", bits=bits)
        assert np.array_equal(png.read_labels(tmp_path / "m.png"), labels)
        assert np.array_equal(read_mask(tmp_path / "m.png"), labels != 0)


def test_sixteen_bit_and_faint_values_are_foreground(tmp_path: Path) -> None:
    """The original tools lose 16-bit values below 256; the compatible reader shows it."""
    mask = random_mask(np.random.default_rng(3), 20, 30)
    mask[0, 0] = True
    cv2.imwrite(str(tmp_path / "m.png"), mask.astype(np.uint16) * np.uint16(255))
    assert np.array_equal(read_mask(tmp_path / "m.png"), mask)
    assert png.read_mask_opencv(tmp_path / "m.png").area() < mask.sum()
    with pytest.raises(InputError, match="label map"):
        png.read_labels(tmp_path / "m.png")


def test_mask_in_alpha_is_refused(tmp_path: Path) -> None:
    image = np.full((5, 6, 4), 255, np.uint8)
    image[:2, :, 3] = 0
    cv2.imwrite(str(tmp_path / "m.png"), image)
    with pytest.raises(InputError, match="alpha"):
        read_mask(tmp_path / "m.png")
    assert png.read_mask_opencv(tmp_path / "m.png").area() == 30


def png_file(height: int, width: int, interlaced: int, stream: bytes) -> bytes:
    """An 8-bit gray PNG with right checksums around any zlib stream."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, interlaced])
    chunks = [(b"IHDR", header), (b"IDAT", stream), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    )


def interlaced_png(values: Any) -> bytes:
    """An 8-bit gray PNG whose pixels are stored in the seven passes of Adam7."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row for y, x, dy, dx in passes for row in values[y::dy, x::dx] if row.size]
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    height, width = values.shape
    return png_file(height, width, 1, data)


def test_interlaced_files_follow_the_same_rule(tmp_path: Path) -> None:
    labels = labels_of(np.random.default_rng(4), 21, 35)
    (tmp_path / "m.png").write_bytes(interlaced_png(labels))
    assert np.array_equal(png.read_labels(tmp_path / "m.png"), labels)
    assert np.array_equal(read_mask(tmp_path / "m.png"), labels != 0)
    damaged = bytearray(interlaced_png(labels))
    damaged[60:70] = bytes(10)
    (tmp_path / "m.png").write_bytes(damaged)
    with pytest.raises(InputError):
        read_mask(tmp_path / "m.png")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    write_mask_png(tmp_path / "m.png", random_mask(np.random.default_rng(5), 30, 40))
    whole = (tmp_path / "m.png").read_bytes()
    for n in range(len(whole)):
        (tmp_path / "m.png").write_bytes(whole[:n])
        with pytest.raises(InputError, match=r"m\.png"):
            read_mask(tmp_path / "m.png")


def test_no_single_damaged_byte_changes_the_mask(tmp_path: Path) -> None:
    mask = random_mask(np.random.default_rng(0), 30, 40)
    write_mask_png(tmp_path / "m.png", mask)
    whole = (tmp_path / "m.png").read_bytes()
    for n in range(len(whole)):
        damaged = bytearray(whole)
        damaged[n] ^= 1 << (n % 8)
        (tmp_path / "m.png").write_bytes(damaged)
        try:
            assert np.array_equal(read_mask(tmp_path / "m.png"), mask)  # only where nothing depends on the byte
        except InputError:
            continue


def test_huge_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(png_file(2**31 - 1, 2**31 - 1, 0, b""))
    with pytest.raises(InputError, match="no usable mask"):
        read_mask(tmp_path / "m.png")


def test_missing_and_other_files(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.jpg"), np.zeros((4, 4), np.uint8))
    (tmp_path / "m.jpg").rename(tmp_path / "m.png")
    for read in (read_mask, png.read_labels):
        with pytest.raises(InputError, match="not a PNG"):
            read(tmp_path / "m.png")
        with pytest.raises(InputError, match="missing"):
            read(tmp_path / "none.png")
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path)
    with pytest.raises(InputError, match="missing"):
        png.read_mask_opencv(tmp_path / "none.png")


def gray_png(stream: bytes) -> bytes:
    """A PNG of 10x10 gray pixels of 8 bits with the zlib stream given."""
    return png_file(10, 10, 0, stream)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (zlib.compress(bytes(110))[:-1], "end too early"),
        (zlib.compress(bytes(110))[:8], "end too early"),
        (b"", "end too early"),
        (zlib.compress(bytes(110)) + b"x", "do not fit its size"),
        (zlib.compress(bytes(109)), "do not fit its size"),
        (zlib.compress(bytes(111)), "do not fit its size"),
        (zlib.compress(bytes(50_000_000)), "do not fit its size"),
        (zlib.compress(bytes(110))[:-4] + bytes(4), "are damaged"),
        (zlib.compress(bytes(110))[:2] + b"\xff" * 20, "are damaged"),
        (bytes(110), "are damaged"),
        (zlib.compress(bytes([5]) + bytes(109)), "unknown row filter"),
    ],
)
def test_image_data_must_be_whole_and_fit(tmp_path: Path, stream: bytes, message: str) -> None:
    """With checksums of the chunks that are right, so that only the zlib stream is at fault."""
    (tmp_path / "m.png").write_bytes(gray_png(zlib.compress(bytes(110))))
    assert not read_mask(tmp_path / "m.png").any()
    (tmp_path / "m.png").write_bytes(gray_png(stream))
    with pytest.raises(InputError, match=rf"m\.png: damaged PNG .*{message}"):
        read_mask(tmp_path / "m.png")


def test_image_data_of_other_packers(tmp_path: Path) -> None:
    """Stored, fixed and dynamic blocks, and run-length matches only."""
    rng = np.random.default_rng(6)
    for level, strategy in ((0, 0), (1, 0), (9, 0), (6, 2), (6, 3), (6, 4)):
        labels = labels_of(rng, 10, 10)
        rows = b"".join(b"\0" + row.tobytes() for row in labels)
        packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9, strategy)
        (tmp_path / "m.png").write_bytes(gray_png(packer.compress(rows) + packer.flush()))
        assert np.array_equal(png.read_labels(tmp_path / "m.png"), labels)


def test_surplus_image_data_cost_no_memory() -> None:
    """What a small file would inflate to is never held."""
    bomb = gray_png(zlib.compress(bytes(100_000_000)))
    tracemalloc.start()
    with pytest.raises(InputError, match="do not fit its size"):
        png.read_gray(bomb, "bomb.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_rle_text_of_masks() -> None:
    rng = np.random.default_rng(8)
    for size in SIZES:
        mask = random_mask(rng, *size)
        rle = encode_rle(mask)
        assert isinstance(rle["counts"], str)
        assert np.array_equal(decode_rle(rle, *size, "x"), mask)
        with pytest.raises(InputError, match=r"^frame 3: mask of"):
            decode_rle(rle, size[0] + 1, size[1], "frame 3")
    assert not decode_rle(None, 4, 5, "x").any()


def test_no_torch() -> None:
    """Evaluating needs no torch: importing it takes seconds and a GPU evaluator is not needed."""
    code = "import sys, glus.masks, glus.evaluation.expression_commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
