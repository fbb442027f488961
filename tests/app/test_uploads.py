"""What visitors send: whatever its name, it is taken as a video or as images, within the limits, or refused."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_clip

from glus.app.uploads import Limits, Upload, check_work, read_sentences, read_upload
from glus.errors import InputError
from glus.video import write_video

LIMITS = Limits(megabytes=2, frames=12, side=200)


def mp4(place: Path, frames: int = 6, height: int = 40, width: int = 56) -> bytes:
    write_video(place / "made.mp4", tiny_clip(frames, height, width))
    return (place / "made.mp4").read_bytes()


def png(height: int = 40, width: int = 56, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def huge_png(side: int) -> bytes:
    """A small file that says it unpacks to `side` x `side` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.raw", bytes(50 << 20))
    return out.getvalue()


def send(place: Path, limits: Limits = LIMITS, **files: bytes) -> Upload:
    """Upload files; `__` in a name is a dot."""
    sent, folder = place / "sent", place / "kept"
    for path in (sent, folder):
        path.mkdir()
    for name, content in files.items():
        (sent / name.replace("__", ".")).write_bytes(content)
    return read_upload([sent / name.replace("__", ".") for name in files], folder, limits)


def test_a_video_under_any_name(tmp_path: Path) -> None:
    upload = send(tmp_path, **{"report__pdf": mp4(tmp_path)})
    assert (upload.frames, upload.width, upload.height, upload.images) == (6, 56, 40, False)
    assert upload.name == "report.pdf"
    assert [path.name for path in upload.files] == ["00000"]
    assert len(upload.open()) == 6
    assert Image.open(upload.preview).size == (56, 40)


def test_images_are_frames_in_natural_order(tmp_path: Path) -> None:
    files = {f"shot{n}__mp4": png(seed=n) for n in (10, 9, 1)}  # PNGs, whatever they are called
    upload = send(tmp_path, **files)
    assert (upload.frames, upload.images, upload.name) == (3, True, "shot1.mp4 and 2 more")
    frames = upload.open()
    for place, seed in enumerate((1, 9, 10)):
        expected = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)[..., ::-1]
        assert (frames[place] == expected).all()


def test_an_animation_is_a_video(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in tiny_clip(4)]
    out = io.BytesIO()
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    assert send(tmp_path, a__gif=out.getvalue()).frames == 4


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile '/etc/passwd'\n"
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"


@pytest.mark.parametrize(
    "content",
    [b"just a text\n" * 50, b"", zip_bomb(), PLAYLIST, CONCAT, SDP, b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
    ids=["text", "empty", "zip bomb", "play list", "list of files", "session", "svg"],
)
def test_what_is_no_video_is_refused_and_nothing_unpacked(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"^holiday\.mp4 is not a video or an image that can be read") as refusal:
        send(tmp_path, holiday__mp4=content)
    assert str(tmp_path) not in str(refusal.value)
    assert sum(path.stat().st_size for path in (tmp_path / "kept").iterdir()) == len(content)


def test_a_list_of_files_opens_none_of_them(tmp_path: Path) -> None:
    """Without the white list FFmpeg would show what is beside the upload."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "secret.mp4").write_bytes(mp4(tmp_path))
    (tmp_path / "a.mp4").write_bytes(b"ffconcat version 1.0\nfile 'secret.mp4'\n")
    with pytest.raises(InputError, match="not a video or an image"):
        read_upload([tmp_path / "a.mp4"], kept, LIMITS)


def test_half_a_video_is_refused(tmp_path: Path) -> None:
    whole = mp4(tmp_path)
    with pytest.raises(InputError, match=r"a\.mp4"):
        send(tmp_path, a__mp4=whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a__png": png(400, 40)}, r"a\.png is 40x400; the longer side may have 200 pixels"),
        ({"a__png": huge_png(5000)}, r"a\.png is 5000x5000"),
        ({"a__png": huge_png(60000)}, r"a\.png has far more pixels than 200x200"),
        ({"a__png": png(8, 40)}, r"a\.png is 40x8; a side needs 16 pixels"),
        ({"a__png": png()[:-30]}, r"a\.png is truncated"),
        ({"a__png": png(), "b__png": png(40, 60)}, r"b\.png is 60x40, other frames of this video are 56x40"),
        ({"a__png": png(), "b__png": b"text"}, r"b\.png is not an image"),
        ({f"{n}__png": b"" for n in range(13)}, "13 files were sent, but a video may have 12 frames"),
        ({"a__png": bytes(3 << 20)}, "the upload has 3.0 MB, more than 2 MB"),
        ({}, "no file was sent"),
    ],
)
def test_images_beyond_the_limits(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        send(tmp_path, **files)
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((13, 40, 56), r"a\.mp4 has more than 12 frames"),
        ((2, 40, 202), r"a\.mp4 is 202x40; the longer side may have 200 pixels"),
        ((2, 1, 1), r"a\.mp4 is 2x2; a side needs 16 pixels"),
    ],
)
def test_videos_beyond_the_limits(tmp_path: Path, shape: tuple[int, int, int], message: str) -> None:
    write_video(tmp_path / "made.mp4", np.zeros((*shape, 3), np.uint8))
    with pytest.raises(InputError, match=message):
        send(tmp_path, a__mp4=(tmp_path / "made.mp4").read_bytes())


def test_a_video_that_grows_is_refused(tmp_path: Path) -> None:
    """MPEG-TS parts can be joined like this; the second is far above the size in the first one's head."""
    parts = []
    for side in (64, 640):
        write_video(tmp_path / "part.mkv", np.zeros((3, side, side, 3), np.uint8))
        with av.open(str(tmp_path / "part.mkv")) as source:
            out = io.BytesIO()
            with av.open(out, "w", format="mpegts") as target:
                stream = target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.stream = stream
                        target.mux(packet)
            parts.append(out.getvalue())
    with pytest.raises(InputError, match=r"a\.ts"):
        send(tmp_path, a__ts=b"".join(parts))


def test_sentences() -> None:
    limits = Limits(sentences=2, letters=40)
    assert read_sentences("  the red car \n\n<b>bold</b>\r\n", limits) == ["the red car", "<b>bold</b>"]
    for text, message in (
        (" \n\t\n", "there is no sentence"),
        ("a\nb\nc", "there are 3 sentences, more than 2"),
        ("ok\n" + "x" * 10_000, "sentence 2 has 10000 letters, more than 40"),
        ("a\n...", "sentence 2 is empty"),
        ("the [SEG]", "sentence 1 contains"),
        ("\ud800", "sentence 1 is not valid Unicode"),
    ):
        with pytest.raises(InputError, match=message):
            read_sentences(text, limits)


def test_work_that_takes_too_much_memory() -> None:
    upload = Upload("a", [], False, frames=10, width=1024, height=1024, preview=Path())
    check_work(upload, 3, Limits(mask_megabytes=30))
    with pytest.raises(InputError, match=r"10 frames of 1024x1024 with 4 sentences .*40 MB of masks, at most 30"):
        check_work(upload, 4, Limits(mask_megabytes=30))


def test_limits_are_positive() -> None:
    with pytest.raises(InputError, match="the limit of frames must be at least 1, found 0"):
        Limits(frames=0)
