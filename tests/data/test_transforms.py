"""What each view of a frame keeps and hides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from glus.data.transforms import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD, clip_image, clip_pixels, sam_image


def striped(height: int, width: int) -> NDArray[np.uint8]:
    """Left fifth red, right fifth blue, the middle green."""
    frame = np.zeros((height, width, 3), np.uint8)
    edge = width // 5
    frame[:, :edge, 0] = frame[:, width - edge :, 2] = frame[:, edge : width - edge, 1] = 255
    return frame


def has(pixels: NDArray[np.uint8], channel: int) -> bool:
    others = [c for c in range(3) if c != channel]
    return bool(((pixels[..., channel] > 200) & (pixels[..., others] < 50).all(-1)).any())


def test_centre_hides_the_sides() -> None:
    """D44, kept: a 16:9 frame loses about 22 % of its width on either side."""
    pixels = clip_pixels(striped(90, 160))
    assert pixels.shape == (224, 224, 3)
    assert (has(pixels, 0), has(pixels, 1), has(pixels, 2)) == (False, True, False)


@pytest.mark.parametrize("view", ["pad", "squash"])
def test_other_views_keep_the_sides(view: str) -> None:
    pixels = clip_pixels(striped(90, 160), clip_view=view)  # type: ignore[arg-type]
    assert pixels.shape == (224, 224, 3)
    assert has(pixels, 0)
    assert has(pixels, 1)
    assert has(pixels, 2)


def test_pad_keeps_the_aspect_ratio() -> None:
    pixels = clip_pixels(striped(90, 160), clip_view="pad")
    bar = np.round(255 * np.array(CLIP_MEAN)).astype(int)
    assert (pixels[:49] == bar).all()
    assert (pixels[-49:] == bar).all()
    assert has(pixels[49:-49], 0)


@pytest.mark.parametrize("view", ["centre", "pad", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (17, 9)])
def test_any_frame_size(view: str, size: tuple[int, int]) -> None:
    image = clip_image(np.full((*size, 3), 200, np.uint8), size=56, clip_view=view)  # type: ignore[arg-type]
    assert image.shape == (3, 56, 56)
    assert image.dtype == torch.float32


def test_normalisation() -> None:
    frame = np.full((30, 40, 3), (10, 100, 250), np.uint8)
    rgb = torch.tensor([10, 100, 250]) / 255
    clip = (rgb - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    sam = (rgb - torch.tensor(SAM_MEAN)) / torch.tensor(SAM_STD)
    torch.testing.assert_close(clip_image(frame), clip[:, None, None].expand(3, 224, 224))
    torch.testing.assert_close(sam_image(frame, 256), sam[:, None, None].expand(3, 256, 256))


def test_sam_sees_the_whole_frame() -> None:
    image = sam_image(striped(90, 160), size=256)
    assert image.shape == (3, 256, 256)
    assert image[:, 128, 0].argmax() == 0
    assert image[:, 128, 128].argmax() == 1
    assert image[:, 128, -1].argmax() == 2


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_refuses_what_is_no_frame(frame: NDArray[np.uint8]) -> None:
    for transform in (clip_image, sam_image):
        with pytest.raises(ValueError, match="a frame is uint8"):
            transform(frame)


def test_unknown_view() -> None:
    with pytest.raises(ValueError, match="unknown CLIP view"):
        clip_pixels(striped(9, 9), clip_view="crop")  # type: ignore[arg-type]
