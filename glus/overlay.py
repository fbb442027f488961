"""Drawing: masks over frames, and a caption strip that says which colour means which expression."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from glus.video import Frame

Colour = tuple[int, int, int]

# RGB. Distinct in hue and in lightness, so that they stay apart for colour-blind viewers and over dark video.
COLOURS: tuple[Colour, ...] = (
    (255, 92, 87),
    (64, 169, 255),
    (90, 214, 120),
    (255, 196, 61),
    (190, 120, 255),
    (38, 214, 214),
    (255, 128, 195),
    (240, 240, 240),
)


def colour_of(index: int) -> Colour:
    """The colour of expression `index`; repeats after `len(COLOURS)`."""
    return COLOURS[index % len(COLOURS)]


def overlay(
    frame: Frame,
    masks: npt.NDArray[Any],
    colours: Sequence[Colour] | None = None,
    alpha: float = 0.45,
) -> Frame:
    """Tint masks over a frame and outline them.

    Args:
        frame: RGB, uint8 [height, width, 3]; not changed.
        masks: bool [expressions, height, width], or one mask [height, width].
        colours: RGB 0..255 per expression; default `colour_of`.
        alpha: opacity of the tint, 0..1. Where masks overlap, the later one lies on top.

    Returns:
        RGB, uint8 [height, width, 3].
    """
    stack = np.asarray(masks, dtype=bool).reshape(-1, *frame.shape[:2])
    chosen = list(colours) if colours is not None else [colour_of(i) for i in range(len(stack))]
    thickness = max(1, round(max(frame.shape[:2]) / 400))
    picture = frame.copy()
    for mask, colour in zip(stack, chosen, strict=True):
        tint = np.asarray(colour, dtype=np.float32) * alpha
        picture[mask] = np.rint(picture[mask] * (1 - alpha) + tint).astype(np.uint8)
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)
    return picture


def caption_strip(width: int, texts: Sequence[str], colours: Sequence[Colour] | None = None) -> Frame:
    """A strip, uint8 [height, width, 3], with one colour swatch and text per expression, wrapped to `width`.

    The built-in font covers Latin scripts; other characters show as boxes.
    """
    chosen = list(colours) if colours is not None else [colour_of(i) for i in range(len(texts))]
    size = max(12, round(width / 32))
    font = ImageFont.load_default(size)
    indent, line = round(size * 1.8), round(size * 1.5)
    columns = max(8, int((width - indent - size // 2) / (font.getlength("a line of text of usual letters") / 31)))
    wrapped = [textwrap.wrap(text, columns) or [""] for text in texts]
    strip = Image.new("RGB", (width, line * sum(map(len, wrapped)) + size), (24, 26, 30))
    draw = ImageDraw.Draw(strip)
    top = size // 2
    for lines, colour in zip(wrapped, chosen, strict=True):
        draw.rectangle(
            (size // 2, top + size // 4, size // 2 + size * 0.9, top + size // 4 + size * 0.9), fill=colour
        )
        for part in lines:
            draw.text((indent, top), part, font=font, fill=(235, 235, 235))
            top += line
    return np.asarray(strip, dtype=np.uint8)


def captioned(frame: Frame, strip: Frame) -> Frame:
    """The frame with the strip below it."""
    return np.concatenate((frame, strip), axis=0)
