"""Masks of a clip as files: overlay video, PNG, palette PNG, run-length JSON, boxes, cut-outs.

Each export is a context manager that yields `put(index, masks, scores)`, to be called once per frame in order:
`masks` bool [sentences, height, width], `scores` one number per sentence. So the same code serves results held
whole (`SegmentResult`) and frames that come one by one (`python -m glus segment`). Files appear whole or not.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from glus.errors import InputError
from glus.evaluation.labels import merge_objects
from glus.evaluation.output import check_places, csv_text
from glus.io import disk_errors, safe_name, write_bytes, write_json
from glus.masks import bounding_box, encode_rle, write_mask_png
from glus.overlay import caption_strip, captioned, overlay
from glus.video import Frame, FrameSource, alpha_writer, times_of, video_writer

Masks = npt.NDArray[np.bool_]
Put = Callable[[int, Masks, Sequence[float]], None]
Export = AbstractContextManager[Put]
PathLike = str | os.PathLike[str]
RleForm = Literal["youtube-vis", "coco"]
CutoutForm = Literal["png", "webm"]
RLE_FORMS: tuple[RleForm, ...] = ("youtube-vis", "coco")
CUTOUT_FORMS: tuple[CutoutForm, ...] = ("png", "webm")
MOST_LABELS = 254  # of a palette PNG; 0 is the background, 255 means "void" to DAVIS
_FRINGE = np.ones((5, 5), np.uint8)  # half-size chroma mixes colours over two pixels on either side of an edge


@contextmanager
def overlay_video(
    path: PathLike,
    source: FrameSource,
    texts: Sequence[str],
    fps: float | None = None,
    alpha: float = 0.45,
    captions: bool = False,
    audio: bool = True,
) -> Iterator[Put]:
    """A video with every sentence's mask in its own colour over the frames; size, times and sound of the source.

    Args:
        fps: frames per second instead of the source's times; then without its sound, which would not fit.
        captions: a strip below the picture says which colour means which sentence.
        audio: keep the sound.
    """
    strip = caption_strip(source[0].shape[1], texts) if captions else None
    as_is = fps is None
    sound = getattr(source, "audio", None) if audio and as_is else None
    rate = source.fps if fps is None else fps
    with video_writer(path, rate, times_of(source) if as_is else None, sound) as writer:

        def put(index: int, masks: Masks, scores: Sequence[float]) -> None:
            picture = overlay(source[index], masks, alpha=alpha)
            writer.write(picture if strip is None else captioned(picture, strip))

        yield put


@contextmanager
def mask_pngs(folder: PathLike, source: FrameSource, sentences: int) -> Iterator[Put]:
    """`<folder>/<sentence number>/<frame>.png`, single-channel 0/255."""
    places = _folders(folder, source, sentences)

    def put(index: int, masks: Masks, scores: Sequence[float]) -> None:
        for place, mask in zip(places, masks, strict=True):
            path = place / f"{source.names[index]}.png"
            with disk_errors(path):
                write_mask_png(path, mask)

    yield put


@contextmanager
def palette_pngs(folder: PathLike, source: FrameSource, sentences: int) -> Iterator[Put]:
    """`<folder>/<frame>.png` as DAVIS keeps them: the number of the sentence, from 1, in DAVIS's colours.

    Where masks overlap, the first sentence has the pixel.
    """
    if sentences > MOST_LABELS:
        raise InputError(f"{folder}: a palette PNG holds {MOST_LABELS} sentences, not {sentences}")
    (place,) = _folders(folder, source, None)
    palette = davis_palette()

    def put(index: int, masks: Masks, scores: Sequence[float]) -> None:
        picture = Image.fromarray(merge_objects(list(masks)))
        picture.putpalette(palette)
        data = io.BytesIO()
        picture.save(data, "PNG")
        path = place / f"{source.names[index]}.png"
        with disk_errors(path):
            write_bytes(path, data.getvalue())

    yield put


def davis_palette() -> bytes:
    """256 colours, RGB: the bits of a label, three by three, are the high bits of red, green and blue."""
    colours = np.zeros((256, 3), np.uint8)
    for label in range(256):
        for bit in range(8):
            colours[label, bit % 3] |= (label >> bit & 1) << (7 - bit // 3)
    return colours.tobytes()


@contextmanager
def cutouts(folder: PathLike, source: FrameSource, sentences: int, form: CutoutForm = "png") -> Iterator[Put]:
    """What the masks cover, on a transparent ground that holds nothing of the picture.

    Args:
        form: "png": `<folder>/<sentence number>/<frame>.png`, RGBA; "webm": `<folder>/<sentence number>.webm`, VP9
            with alpha, with the times of the source.
    """
    if form not in CUTOUT_FORMS:
        raise InputError(f"form of cut-outs must be one of {', '.join(CUTOUT_FORMS)}, found {form!r}")
    with ExitStack() as stack:
        if form == "png":
            places = _folders(folder, source, sentences)
        else:
            (place,) = _folders(folder, source, None)
            paths = [place / f"{number}.webm" for number in range(sentences)]
            writers = [stack.enter_context(alpha_writer(p, source.fps, times_of(source))) for p in paths]

        def put(index: int, masks: Masks, scores: Sequence[float]) -> None:
            frame = source[index]
            for number, mask in enumerate(masks):
                if form == "webm":
                    near = cv2.dilate(mask.astype(np.uint8), _FRINGE) != 0
                    writers[number].write(_cut_out(frame, mask, near))
                    continue
                pixels = cv2.cvtColor(_cut_out(frame, mask, mask), cv2.COLOR_RGBA2BGRA)
                path = places[number] / f"{source.names[index]}.png"
                with disk_errors(path):
                    write_bytes(path, cv2.imencode(".png", pixels)[1].tobytes())

        yield put


def _cut_out(frame: Frame, mask: Masks, coloured: Masks) -> Frame:
    """RGBA: opaque inside `mask`, with the frame's colours inside `coloured`, else black."""
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[..., :3][coloured] = frame[coloured]
    rgba[..., 3] = mask * np.uint8(255)
    return rgba


@contextmanager
def boxes_csv(path: PathLike, source: FrameSource, texts: Sequence[str]) -> Iterator[Put]:
    """A table with one row per frame and sentence; x, y, width and height in pixels, empty where the mask is."""
    check_places(Path(path))
    rows: list[dict[str, Any]] = []

    def put(index: int, masks: Masks, scores: Sequence[float]) -> None:
        for number, (text, mask, score) in enumerate(zip(texts, masks, scores, strict=True)):
            box = bounding_box(mask) or ("", "", "", "")
            place = dict(zip(("x", "y", "width", "height"), box, strict=True))
            about = {"frame": source.names[index], "number": number, "sentence": text, "score": f"{score:.4f}"}
            rows.append({**about, **place})

    yield put
    columns = ("frame", "number", "sentence", "x", "y", "width", "height", "score")
    with disk_errors(path):
        write_bytes(path, csv_text(columns, rows).encode())


@contextmanager
def rle_json(
    path: PathLike, source: FrameSource, texts: Sequence[str], form: RleForm = "youtube-vis"
) -> Iterator[Put]:
    """Run-length codes with boxes, areas and scores; the sentences are the categories, numbered from 1.

    Args:
        form: "youtube-vis": one video, an annotation per sentence with a list over the frames, null where the mask
            is empty; "coco": an image per frame, an annotation per frame and sentence whose mask is not empty.
    """
    if form not in RLE_FORMS:
        raise InputError(f"form of run-length codes must be one of {', '.join(RLE_FORMS)}, found {form!r}")
    check_places(Path(path))
    found: list[list[dict[str, Any]]] = [[] for _ in texts]

    def put(index: int, masks: Masks, scores: Sequence[float]) -> None:
        for number, (mask, score) in enumerate(zip(masks, scores, strict=True)):
            box = bounding_box(mask)
            code = {"segmentation": encode_rle(mask) if box else None, "bbox": list(box) if box else None}
            found[number].append({**code, "area": int(mask.sum()), "score": round(float(score), 6)})

    yield put
    files = [f"{name}.jpg" for name in source.names]
    height, width = source[0].shape[:2]
    size = {"width": width, "height": height}
    content: dict[str, Any] = {"categories": [{"id": i, "name": text} for i, text in enumerate(texts, start=1)]}
    if form == "youtube-vis":
        content["videos"] = [{"id": 1, "file_names": files, **size, "length": len(files)}]
        content["annotations"] = [
            {
                "id": number,
                "video_id": 1,
                "category_id": number,
                "iscrowd": 0,
                **{plural: [one[name] for one in track] for name, plural in _PLURALS.items()},
            }
            for number, track in enumerate(found, start=1)
        ]
    else:
        content["images"] = [{"id": i, "file_name": file, **size} for i, file in enumerate(files, start=1)]
        rows = [
            {"image_id": i, "category_id": number, "iscrowd": 0, **one}
            for number, track in enumerate(found, start=1)
            for i, one in enumerate(track, start=1)
            if one["bbox"]
        ]
        content["annotations"] = [{"id": i, **row} for i, row in enumerate(rows, start=1)]
    with disk_errors(path):
        write_json(path, content, indent=None)


_PLURALS = {"segmentation": "segmentations", "bbox": "bboxes", "area": "areas", "score": "scores"}


def _folders(folder: PathLike, source: FrameSource, sentences: int | None) -> list[Path]:
    """Make `folder`, or its numbered folders; the frames' names must be fit for files in them."""
    for name in source.names:
        safe_name(name, "video", "frame name")
    places = [Path(folder)] if sentences is None else [Path(folder) / str(i) for i in range(sentences)]
    for place in places:
        with disk_errors(place):
            place.mkdir(parents=True, exist_ok=True)
    return places
