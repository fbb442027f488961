"""Video files of every kind in; times, size and sound kept on the way out; fewer frames; bad files."""

from __future__ import annotations

import logging
import math
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from video_files import SIZE, add_sound, decoded_alpha, heard, picture, put_sound, tone, write_file

from glus.errors import InputError
from glus.video import (
    Audio,
    FrameSource,
    VideoFileFrames,
    alpha_writer,
    open_frames,
    select,
    times_of,
    video_writer,
    write_video,
)

KINDS = {
    "mp4": ("a.mp4", "libx264", "yuv420p", SIZE),
    "mp4-10-bit": ("a.mp4", "libx264", "yuv420p10le", SIZE),
    "mov-10-bit": ("a.mov", "prores_ks", "yuv422p10le", SIZE),
    "webm-odd": ("a.webm", "libvpx-vp9", "yuv420p", (33, 47)),
    "mkv": ("a.mkv", "libx264", "yuv444p", (33, 47)),
    "avi": ("a.avi", "mpeg4", "yuv420p", SIZE),
    "avi-without-stamps": ("a.avi", "libx264", "yuv420p", SIZE),
    "gif-odd": ("a.gif", "gif", "rgb8", (33, 47)),
    "mpeg": ("a.mpg", "mpeg2video", "yuv420p", SIZE),
    "transport stream": ("a.ts", "libx264", "yuv420p", SIZE),  # entering it at a time comes out too late
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_whole_and_in_pieces(kind: str, tmp_path: Path) -> None:
    name, codec, pix_fmt, size = KINDS[kind]
    rate = 25 if codec == "mpeg2video" else 10  # it knows only some rates
    path = write_file(tmp_path / name, codec, pix_fmt, size, rate=rate, options={"g": "3"})
    video = open_frames(path)
    assert isinstance(video, VideoFileFrames)
    assert len(video) == 8
    assert video.fps == rate
    assert times_of(video) is None
    assert video.audio is None
    for i in range(8):
        assert video[i].shape == (*size, 3)
        assert video[i].dtype == np.uint8
        coarse = 40 if codec == "gif" else 6  # 8 levels of red and green, 4 of blue
        assert np.abs(video[i].astype(int) - picture(i, size)).mean() < coarse
        assert i == 0 or video[i].mean() > video[i - 1].mean() + 5
    bounded = VideoFileFrames(path, memory_bound=2 * video[0].nbytes)
    assert all((bounded[i] == video[i]).all() for i in (7, 0, 3, 2, 1, 6, 5))


def test_variable_rate_keeps_its_times(tmp_path: Path) -> None:
    stamps = [0, 40, 80, 500, 540, 1000, 1700, 1740]
    for name in ("v.mp4", "v.webm"):
        codec = "libx264" if name == "v.mp4" else "libvpx-vp9"
        video = open_frames(write_file(tmp_path / name, codec, stamps=stamps))
        wanted = tuple(Fraction(stamp, 1000) for stamp in stamps)
        assert times_of(video) == wanted
        assert video.fps == Fraction(7 * 1000, 1740)
        with video_writer(tmp_path / "out.mp4", video.fps, times_of(video)) as writer:
            for frame in video:
                writer.write(frame)
        back = open_frames(tmp_path / "out.mp4")
        assert times_of(back) == wanted
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert container.duration / 1e6 == pytest.approx(1.78, abs=0.001)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation(turn: int, tmp_path: Path) -> None:
    """The display matrix in the track header, as phones write it (clockwise)."""
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[:8, :12] = 255  # top left
    write_video(tmp_path / "a.mp4", [frame] * 3)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"tkhd") + 44
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    one = 0x10000
    matrix = (cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 0x40000000)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    (tmp_path / "turned.mp4").write_bytes(data)
    turned = open_frames(tmp_path / "turned.mp4")
    assert np.abs(turned[1].astype(int) - np.rot90(frame, -turn // 90)).mean() < 4
    write_video(tmp_path / "again.mp4", turned, turned.fps)  # upright pictures, no matrix
    assert np.abs(open_frames(tmp_path / "again.mp4")[1].astype(int) - turned[1]).mean() < 4


def test_what_is_written_plays_in_a_browser(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        write_video(tmp_path / "a.mp4", [picture(i, (33, 47)) for i in range(5)], Fraction(30000, 1001))
    assert "47x33 is padded to 48x34" in caplog.text
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 48, 34)
        assert (context.colorspace, context.color_range) == (1, 1)  # BT.709, limited: said, not guessed
    back = open_frames(tmp_path / "a.mp4")
    assert back.fps == Fraction(30000, 1001)
    assert np.abs(back[2][:33, :47].astype(int) - picture(2, (33, 47))).max() < 8


@pytest.mark.parametrize(("size"), [(1, 1), (1, 50), (2, 3)])
def test_smallest_pictures(size: tuple[int, int], tmp_path: Path) -> None:
    frames = [picture(i, size) for i in range(3)]
    write_video(tmp_path / "a.mp4", frames)
    back = open_frames(tmp_path / "a.mp4")[1]
    assert back.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert abs(float(back[: size[0], : size[1]].mean()) - frames[1].mean()) < 8


# -- sound ---------------------------------------------------------------------------------------------------


def frequency(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def rewritten(source: FrameSource, path: Path) -> Path:
    with video_writer(path, source.fps, times_of(source), getattr(source, "audio", None)) as writer:
        for frame in source:
            writer.write(frame)
    return path


@pytest.mark.parametrize(
    ("name", "video", "codec", "kept", "rate"),
    [
        ("a.mp4", "libx264", "aac", "aac", 44100),
        ("a.mp4", "libx264", "libmp3lame", "mp3", 44100),
        ("a.mov", "libx264", "pcm_s16le", "aac", 44100),
        ("a.avi", "mpeg4", "pcm_s16le", "aac", 44100),
        ("a.webm", "libvpx-vp9", "libopus", "aac", 48000),
    ],
)
def test_sound_is_kept(name: str, video: str, codec: str, kept: str, rate: int, tmp_path: Path) -> None:
    path = write_file(tmp_path / name, video, frames=10, audio=codec)
    source = open_frames(path)
    assert isinstance(source, VideoFileFrames)
    assert source.audio is not None
    found, samples = heard(rewritten(source, tmp_path / "out.mp4"))
    assert found == kept
    assert len(samples) / rate == pytest.approx(1.0, abs=0.06)  # whole frames of the codec
    assert frequency(samples[rate // 4 : rate * 3 // 4], rate) == pytest.approx(1000, abs=5)
    assert len(open_frames(tmp_path / "out.mp4")) == 10


def test_copied_sound_is_the_same_sound(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.mp4", frames=10, audio="aac")
    _, before = heard(path)
    _, after = heard(rewritten(open_frames(path), tmp_path / "out.mp4"))
    count = min(len(before), len(after))
    assert abs(len(before) - len(after)) <= 1024
    assert np.abs(before[:count] - after[:count]).max() < 1e-6


def test_sound_of_a_part(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:  # sound in the second half alone
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        sound = add_sound(container, "aac")
        for i in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        container.mux(stream.encode(None))
        wave = tone(1, 44100)
        wave[:22050] = 0
        put_sound(container, sound, wave)
    _, samples = heard(rewritten(select(open_frames(path), start=0.4, end=0.8), tmp_path / "out.mp4"))
    assert len(samples) / 44100 == pytest.approx(0.4, abs=0.06)
    loud = np.abs(samples) > 0.05
    assert np.argmax(loud) / 44100 == pytest.approx(0.1, abs=0.03)  # begins at 0.5 s, 0.1 s after the cut


def test_damaged_sound_costs_no_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong = tmp_path / "b.mkv"
    with av.open(str(wrong), "w") as container:
        sound = add_sound(container, "ac3")
        put_sound(container, sound, tone(0.1, 44100))
        for i in range(10):
            packet = av.Packet(bytes(60))
            packet.stream, packet.time_base, packet.pts, packet.dts = sound, Fraction(1, 50), 10 + i, 10 + i
            container.mux(packet)
    with video_writer(tmp_path / "out.mp4", 10, None, Audio(wrong)) as writer:
        for i in range(5):
            writer.write(picture(i))
    assert "b.mkv: the sound cannot be read any further" in caplog.text
    assert len(open_frames(tmp_path / "out.mp4")) == 5
    silent = write_file(tmp_path / "silent.mp4")
    for path, told in ((silent, "no sound"), (tmp_path / "gone.mp4", "cannot be read")):
        with (
            pytest.raises(InputError, match=f"{path.name}.*{told}"),
            video_writer(tmp_path / "no.mp4", 10, None, Audio(path)) as writer,
        ):
            writer.write(picture(0))


# -- transparency --------------------------------------------------------------------------------------------


def test_alpha(tmp_path: Path) -> None:
    frames = []
    for i in range(5):
        frame = np.full((33, 47, 4), 0, np.uint8)
        frame[8:25, 4 + 5 * i : 20 + 5 * i] = (200, 60, 40, 255)
        frames.append(frame)
    with alpha_writer(tmp_path / "a.webm", 10) as writer:
        for frame in frames:
            writer.write(frame)
    back = decoded_alpha(tmp_path / "a.webm")
    assert back.shape == (5, 33, 47, 4)
    for i in range(5):
        assert ((back[i, ..., 3] > 127) == (frames[i][..., 3] > 0)).mean() > 0.97
        inside = back[i, 12:20, 10 + 5 * i : 15 + 5 * i, :3].astype(int)
        assert np.abs(inside - (200, 60, 40)).max() < 16
    for name, frame in (("a.mp4", frames[0]), ("b.webm", frames[0][..., :3])):
        with pytest.raises(InputError), alpha_writer(tmp_path / name) as writer:
            writer.write(frame)
    assert [p.name for p in tmp_path.iterdir()] == ["a.webm"]


# -- choosing frames -----------------------------------------------------------------------------------------


def numbers(source: FrameSource) -> list[int]:
    return [int(name) for name in source.names]


def test_choosing_frames() -> None:
    clip = open_frames(np.stack([picture(i) for i in range(12)]))  # 6 frames a second
    assert select(clip) is clip
    assert select(clip, fps=60) is clip
    assert select(clip, max_frames=12, resize=48) is clip
    assert numbers(select(clip, start=0.5, end=1.5)) == [3, 4, 5, 6, 7, 8]
    assert numbers(select(clip, start=0.5)) == list(range(3, 12))
    third = select(clip, fps=2)
    assert numbers(third) == [0, 3, 6, 9]
    assert third.fps == 2
    assert times_of(third) is None
    assert (third[2] == clip[6]).all()
    uneven = select(clip, fps=4)
    assert numbers(uneven) == [0, 2, 3, 5, 6, 8, 9, 11]
    assert times_of(uneven) == tuple(Fraction(i, 6) for i in (0, 2, 3, 5, 6, 8, 9, 11))
    assert numbers(select(clip, max_frames=3)) == [0, 6, 11]
    assert numbers(select(clip, max_frames=1)) == [0]
    assert numbers(select(clip, start=1, fps=3, max_frames=2)) == [6, 10]
    assert numbers(select(select(clip, fps=2), start=1)) == [6, 9]


def test_near_rates_drop_nothing() -> None:
    clip = open_frames(np.zeros((300, 2, 2, 3), np.uint8))
    clip.fps = Fraction(30000, 1001)  # type: ignore[misc]
    assert len(select(clip, fps=29.97)) == 300
    assert len(select(clip, fps=30)) == 300
    assert len(select(clip, fps=15)) == 150


def test_smaller_frames() -> None:
    clip = open_frames(np.stack([picture(i, (33, 60)) for i in range(3)]))
    small = select(clip, resize=20)
    assert small[1].shape == (11, 20, 3)
    assert small.names == clip.names
    assert abs(float(small[1].mean()) - clip[1].mean()) < 1
    assert select(clip, resize=100)[0].shape == (33, 60, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"start": 9},
        {"start": 1, "end": 1},
        {"fps": 0},
        {"fps": -1},
        {"max_frames": 0},
        {"resize": 0},
        {"end": -1},
        {"fps": math.inf},
        {"start": math.nan},
    ],
)
def test_choices_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        select(open_frames(np.zeros((12, 2, 2, 3), np.uint8)), **options)  # type: ignore[arg-type]


def test_folder_with_names_of_any_kind(tmp_path: Path) -> None:
    encoded = cv2.imencode(".png", picture(1))[1].tobytes()
    for name in ("frame.0010", "frame.0009", "räder 2", "notes"):
        (tmp_path / name).write_bytes(encoded if name != "notes" else b"no picture")
    frames = open_frames(tmp_path)
    assert frames.names == ["frame.0009", "frame.0010", "räder 2"]
    assert frames[2].shape == (*SIZE, 3)


# -- bad files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mp4", "mov-10-bit", "webm-odd", "mkv", "avi", "gif-odd"])
@pytest.mark.parametrize("part", [0.2, 0.7, 0.97])
def test_truncated(kind: str, part: float, tmp_path: Path) -> None:
    name, codec, pix_fmt, size = KINDS[kind]
    data = write_file(tmp_path / name, codec, pix_fmt, size, noise=True).read_bytes()
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match="cut-a"):
        open_frames(cut)


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.mp4", "some words\n" * 200),
        ("text.txt", "some words\n" * 200),  # FFmpeg would draw it as a film
        ("list.m3u8", PLAYLIST),
        ("list.mp4", PLAYLIST),
        ("concat.txt", "ffconcat version 1.0\nfile {target}\n"),
        ("empty.webm", ""),
    ],
)
def test_files_that_are_no_video(name: str, content: str, tmp_path: Path) -> None:
    target = write_file(tmp_path / "private.mp4")
    (tmp_path / name).write_text(content.format(target=target))
    with pytest.raises(InputError, match=name):
        open_frames(tmp_path / name)


def test_a_pattern_of_names_opens_nothing(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "private1.png"), picture(1))
    with pytest.raises(InputError, match="private%d"):
        open_frames(tmp_path / "private%d.png")


def test_no_frames(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "none.mp4"), "w") as container:
        put_sound(container, add_sound(container, "aac"), tone(0.1, 44100))
    with pytest.raises(InputError, match=r"none\.mp4 has no video stream"):
        open_frames(tmp_path / "none.mp4")
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(InputError, match="no images"):
        open_frames(tmp_path / "clip.mp4")


def test_size_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuvj420p"
        for i in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        jpeg = av.Packet(cv2.imencode(".jpg", picture(2, (20, 20)))[1].tobytes())
        jpeg.stream, jpeg.pts, jpeg.dts, jpeg.time_base = stream, 2, 2, Fraction(1, 10)
        container.mux(jpeg)
    with pytest.raises(InputError, match=r"a\.mkv changes from 48x34 to 20x20 at frame 2"):
        open_frames(path)


def test_reading_starts_no_threads(tmp_path: Path) -> None:
    """FFmpeg's hang now and then when they end; seen with scaling, and with VP9 left midway."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("counts the threads of the process in /proc, which is Linux's")
    path = write_file(tmp_path / "a.webm", "libvpx-vp9", frames=4)
    video = VideoFileFrames(path, memory_bound=1)
    before = len(list(tasks.iterdir()))
    decoding = video._decode(None)
    _, frame = next(decoding)
    assert frame.to_ndarray(format="rgb24", threads=1).shape == video[0].shape
    assert len(list(tasks.iterdir())) == before
    decoding.close()
