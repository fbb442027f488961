"""Reading and writing video: exact indices, faults named, atomic output."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from glus.errors import InputError, OutputError
from glus.overlay import COLOURS, caption_strip, captioned, overlay
from glus.video import ImageFrames, VideoFileFrames, open_frames, read_image, video_writer, write_video


def clip(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames whose brightness tells their index: 5 levels apart, well above coding noise."""
    return np.stack([np.full((height, width, 3), 20 + 5 * i, np.uint8) for i in range(count)])


def jpeg(seed: int = 0, size: tuple[int, int] = (48, 64), extension: str = ".jpg") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.imencode(extension, pixels)[1].tobytes()


def test_round_trip_through_h264(tmp_path: Path) -> None:
    frames = clip(30)
    write_video(tmp_path / "a.mp4", frames, fps=Fraction(30000, 1001))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
    back = open_frames(tmp_path / "a.mp4")
    assert len(back) == 30
    assert back.fps == Fraction(30000, 1001)
    assert back.names[:2] == ["00000", "00001"]
    assert back[7].shape == (48, 64, 3)
    for i in range(30):
        assert abs(float(back[i].mean()) - frames[i].mean()) < 2


def test_colour_survives(tmp_path: Path) -> None:
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:, :32] = (200, 40, 60)
    frame[:, 32:] = (30, 60, 220)
    write_video(tmp_path / "a.mp4", [frame] * 3)
    back = open_frames(tmp_path / "a.mp4")[1]
    assert np.abs(back[8:-8, 8:24].astype(int) - frame[8:-8, 8:24]).max() < 12
    assert np.abs(back[8:-8, 40:56].astype(int) - frame[8:-8, 40:56]).max() < 12


def test_odd_sizes_are_padded(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(4, 33, 47))
    assert open_frames(tmp_path / "a.mp4")[0].shape == (34, 48, 3)


def test_one_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(1))
    assert len(open_frames(tmp_path / "a.mp4")) == 1


def test_long_video_decodes_again_to_the_same_frames(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 6, 8, 3), dtype=np.uint8)
    frames = [cv2.resize(n, (64, 48)) for n in noise]
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"g": "12", "bf": "3", "x264-params": "open-gop=1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    whole = VideoFileFrames(tmp_path / "a.mp4")
    bounded = VideoFileFrames(tmp_path / "a.mp4", memory_bound=4 * frames[0].nbytes)
    assert len(bounded) == len(whole) == 40
    order = [0, 39, 11, 12, 13, 12, 11, 10, *range(40), *reversed(range(40))]
    assert all((bounded[i] == whole[i]).all() for i in order)
    assert len(bounded._frames) <= 4


def test_phone_video_is_turned_upright(tmp_path: Path) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, 32:] = 255  # bright right half
    write_video(tmp_path / "a.mp4", [frame] * 3)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    # the display matrix follows 4 + 40 bytes after the name of the track header box; turn by 90 degrees clockwise
    at = data.index(b"tkhd") + 4 + 40
    matrix = (0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 0x40000000)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    (tmp_path / "turned.mp4").write_bytes(data)
    turned = open_frames(tmp_path / "turned.mp4")[0]
    assert turned.shape == (64, 48, 3)
    assert turned[48:].mean() > 230  # right became bottom
    assert turned[:16].mean() < 25


def test_truncated_video_is_an_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.mp4", rng.integers(0, 256, (30, 48, 64, 3), dtype=np.uint8))
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut\.mp4"):
        open_frames(tmp_path / "cut.mp4")
    whole = io.BytesIO(data)  # the same with the index in front, where half a file still opens
    with (
        av.open(whole) as source,
        av.open(str(tmp_path / "front.mp4"), "w", options={"movflags": "faststart"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    assert len(open_frames(tmp_path / "front.mp4")) == 30
    data = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(InputError, match=r"cut\.mp4"):
        open_frames(tmp_path / "cut.mp4")


@pytest.mark.parametrize("content", [None, b"", b"no video at all" * 100])
def test_not_a_video(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.mp4"):
        open_frames(path)


def test_folder_in_natural_order(tmp_path: Path) -> None:
    for i in (10, 9, 1):
        (tmp_path / f"frame{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    frames = open_frames(tmp_path)
    assert frames.names == ["frame1", "frame9", "frame10"]
    assert (frames[2] == read_image(tmp_path / "frame10.jpg")).all()
    assert [f.shape for f in frames] == [(48, 64, 3)] * 3  # iteration ends by IndexError


def test_read_image_gives_rgb(tmp_path: Path) -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 2] = 250  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "a.png"), red)
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [250, 0, 0]


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.99])
def test_truncated_image_is_an_error_not_grey(part: float, extension: str, tmp_path: Path) -> None:
    data = jpeg(extension=extension)
    (tmp_path / f"a{extension}").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match=rf"a\{extension}"):
        open_frames(tmp_path)[0]


def test_truncated_jpeg_with_a_whole_thumbnail_is_an_error(tmp_path: Path) -> None:
    data, thumbnail = jpeg(), jpeg(1, (8, 8))
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = data[:2] + segment + data[2:]
    (tmp_path / "a.jpg").write_bytes(whole)
    assert (read_image(tmp_path / "a.jpg") == cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1]).all()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        read_image(tmp_path / "a.jpg")


def test_frames_of_different_size(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg())
    (tmp_path / "1.jpg").write_bytes(jpeg(size=(40, 64)))
    frames = open_frames([tmp_path / "0.jpg", str(tmp_path / "1.jpg")])
    assert frames[0].shape == (48, 64, 3)
    with pytest.raises(InputError, match=r"1\.jpg is 64x40.*64x48"):
        frames[1]


def test_arrays(tmp_path: Path) -> None:
    array = clip(3)
    frames = open_frames(array)
    assert len(frames) == 3
    assert (frames[2] == array[2]).all()
    assert open_frames(frames) is frames
    for bad in (array[0], array.astype(np.float32), array[:0], array[..., :1]):
        with pytest.raises(InputError):
            open_frames(bad)


@pytest.mark.parametrize("source", [[], 5, ["missing.jpg"], None])
def test_other_sources(source: object) -> None:
    with pytest.raises(InputError):
        open_frames(source)[0]


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images"):
        open_frames(tmp_path)


def test_repeated_names() -> None:
    with pytest.raises(InputError, match="not unique"):
        ImageFrames(["a/0.jpg", "b/0.jpg"])


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, clip(2))
    before = path.read_bytes()

    def breaking() -> object:
        yield clip(1)[0]
        raise RuntimeError("model broke")

    with pytest.raises(RuntimeError, match="model broke"):
        write_video(path, breaking())  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("name", ["a.txt", "a", "missing/a.mp4"])
def test_output_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_video(tmp_path / name, clip(2))


def test_output_that_cannot_be_shows_before_the_first_frame(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"), video_writer(tmp_path / "none" / "a.mp4"):
        pytest.fail("the block ran")


def test_video_needs_frames_of_one_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(InputError, match="shape"):
        write_video(tmp_path / "a.mp4", [clip(1)[0], clip(1, 50)[0]])
    assert not list(tmp_path.iterdir())


def test_overlay_tints_inside_only() -> None:
    frame = np.full((60, 80, 3), 100, np.uint8)
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 10:30, 10:30] = True
    masks[1, 20:40, 20:40] = True
    picture = overlay(frame, masks, alpha=0.5)
    assert (frame == 100).all()
    expected = np.rint(50 + 0.5 * np.array(COLOURS[0])).astype(int)
    assert np.abs(picture[15, 15].astype(int) - expected).max() <= 1
    assert np.abs(picture[10, 20].astype(int) - COLOURS[0]).max() < 20  # the outline is opaque, but for smoothing
    assert (picture[45:, :] == 100).all()
    single = overlay(frame, masks[1], colours=[(0, 0, 255)])
    assert single[30, 30, 2] > single[30, 30, 0]


def test_captions_wrap_and_fit() -> None:
    short = caption_strip(200, ["a cat"])
    long = caption_strip(200, ["a cat " * 30, "a dog"])
    assert short.shape[1] == long.shape[1] == 200
    assert long.shape[0] > 3 * short.shape[0]
    assert captioned(clip(1, 48, 200)[0], short).shape == (48 + short.shape[0], 200, 3)
