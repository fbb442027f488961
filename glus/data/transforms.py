"""Frames to model inputs: the CLIP view for the LLM, the square view for SAM-2 (reference glus.md 4.7)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

ClipView = Literal["centre", "pad", "squash"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SAM_MEAN = (0.485, 0.456, 0.406)
SAM_STD = (0.229, 0.224, 0.225)


def clip_pixels(frame: NDArray[np.uint8], size: int = 224, clip_view: ClipView = "centre") -> NDArray[np.uint8]:
    """The part of the frame that CLIP sees, before normalisation: uint8 [size, size, 3] RGB.

    Args:
        frame: uint8 [height, width, 3] RGB.
        clip_view: "centre" scales the shorter side to `size` and cuts the centre, as the released model was
            trained (C5); what lies outside is hidden from the language model (D44). "pad" keeps the whole
            frame with bars in CLIP's mean colour, "squash" keeps it without the aspect ratio; both suit
            only models trained that way.
    """
    _check_frame(frame)
    height, width = frame.shape[:2]
    image = Image.fromarray(frame)
    if clip_view == "squash":
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    if clip_view == "pad":
        longer = max(height, width)
        scaled = (max(1, size * width // longer), max(1, size * height // longer))
        canvas = Image.new("RGB", (size, size), tuple(round(255 * mean) for mean in CLIP_MEAN))
        canvas.paste(
            image.resize(scaled, Image.Resampling.BICUBIC),
            ((size - scaled[0]) // 2, (size - scaled[1]) // 2),
        )
        return np.asarray(canvas)
    if clip_view != "centre":
        raise ValueError(f"unknown CLIP view {clip_view!r}; known: centre, pad, squash")
    shorter = min(height, width)
    # int(a / b) as in the original: a float division, which exact integer division need not equal
    scaled = (int(size * width / shorter), int(size * height / shorter))
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    resized = image.resize(scaled, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def clip_image(frame: NDArray[np.uint8], size: int = 224, clip_view: ClipView = "centre") -> Tensor:
    """CLIP input of a frame: float32 [3, size, size], normalised. Arguments as in `clip_pixels`."""
    pixels = clip_pixels(frame, size, clip_view).astype(np.float64) / 255
    normalised = (pixels - CLIP_MEAN) / CLIP_STD
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32))


def sam_image(frame: NDArray[np.uint8], size: int = 1024, device: torch.device | str = "cpu") -> Tensor:
    """SAM-2 input of a frame: float32 [3, size, size] on `device`, the aspect ratio not kept.

    Args:
        frame: uint8 [height, width, 3] RGB.
    """
    _check_frame(frame)
    pixels = upload(torch.from_numpy(np.ascontiguousarray(frame)), device).permute(2, 0, 1)[None].float() / 255
    resized = functional.interpolate(
        pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )[0]
    mean, std = (upload(torch.tensor(values), device)[:, None, None] for values in (SAM_MEAN, SAM_STD))
    return (resized - mean) / std


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on `device`; by way of pinned memory, since else a GPU's queue would be waited for."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _check_frame(frame: NDArray[np.uint8]) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
        raise ValueError(f"a frame is uint8 [height, width, 3], got {frame.dtype} {list(frame.shape)}")
