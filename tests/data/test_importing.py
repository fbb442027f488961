"""Your own data, COCO and YouTube-VIS files into MeViS layout: what comes out is what went in."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from training_trees import CLIPS, HEIGHT, WIDTH, Clip, edit, palette_labels, write, write_labels

from glus.__main__ import main as glus
from glus.data.coco import segmentation_mask
from glus.data.own import read_sentences
from glus.data.sampling import open_records
from glus.errors import InputError
from glus.masks import decode_rle, encode_rle, write_mask_png
from glus.video import write_video

FILM, SHOTS = CLIPS[0], CLIPS[1]  # "long" as a video file, "even" as pictures


def run(tmp_path: Path, *more: Any) -> int:
    return glus(["data", "import", "--out", str(tmp_path / "out"), *map(str, more)])


def own(tmp_path: Path, masks: str | None = "masks", sentences: str = "sentences.csv") -> int:
    parts = ["--videos", tmp_path / "videos", "--sentences", tmp_path / sentences]
    return run(tmp_path, *parts, *(["--masks", tmp_path / masks] if masks else []))


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder with what a user has: frames, sentences, masks of all kinds."""
    videos = tmp_path / "videos"
    (videos / "even").mkdir(parents=True)
    write_video(videos / "long.mp4", [FILM.picture(i) for i in range(FILM.length)], 6)
    for index in range(SHOTS.length):  # natural order, which is not that of the text
        cv2.imwrite(str(videos / "even" / f"{index + 5}.png"), SHOTS.picture(index)[..., ::-1])
    (tmp_path / "sentences.csv").write_text(
        "video,expression,objects\n"
        'long,"The red one, which moves.",1\n'
        "even,the green box,2\n"
        "long,both of them,1;2\n"
        "even,what is there,\n",
        encoding="utf-8-sig",
    )
    rows = [
        {"video": "long", "expression": "The red one, which moves.", "objects": [1]},
        {"video": "even", "expression": "the green box", "objects": "2"},
        {"video": "long", "expression": "both of them", "objects": [1, 2]},
        {"video": "even", "expression": "what is there"},
    ]
    write(tmp_path / "sentences.json", rows)
    codes: dict[str, Any] = {}
    for clip, names in ((FILM, [f"{i:05d}" for i in range(FILM.length)]), (SHOTS, [str(i + 5) for i in range(8)])):
        (tmp_path / "masks" / clip.name).mkdir(parents=True)
        for index, name in enumerate(names):
            write_labels(tmp_path / "masks" / clip.name / f"{name}.png", palette_labels(clip, index))
            for thing in (1, 2):
                file = tmp_path / "objects" / clip.name / str(thing) / f"{name}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                write_mask_png(file, clip.mask(thing, index))
        codes[clip.name] = {
            str(thing): [
                encode_rle(mask) if mask.any() else None
                for mask in (clip.mask(thing, i) for i in range(clip.length))
            ]
            for thing in (1, 2)
        }
    write(tmp_path / "codes.json", codes)
    return tmp_path


def result(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    folder = tmp_path / "out" / "mevis" / "train"
    meta = json.loads((folder / "meta_expressions.json").read_text())["videos"]
    return meta, json.loads((folder / "mask_dict.json").read_text()), folder / "JPEGImages"


def mask_of(masks: dict[str, Any], expression: dict[str, Any], index: int) -> np.ndarray:
    parts = [decode_rle(masks[str(a)][index], HEIGHT, WIDTH, "mask") for a in expression["anno_id"]]
    return np.logical_or.reduce(parts)


def label_masks(clip: Clip, things: tuple[int, ...], index: int) -> np.ndarray:
    return np.isin(palette_labels(clip, index), things)


def object_masks(clip: Clip, things: tuple[int, ...], index: int) -> np.ndarray:
    return np.logical_or.reduce([clip.mask(thing, index) for thing in things])


@pytest.mark.parametrize("sentences", ["sentences.csv", "sentences.json"])
@pytest.mark.parametrize(
    ("masks", "expected"), [("masks", label_masks), ("objects", object_masks), ("codes.json", object_masks)]
)
def test_own_data(
    given: Path,
    masks: str,
    expected: Callable[..., np.ndarray],
    sentences: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert own(given, masks, sentences) == 0
    assert "no faults" in capsys.readouterr().out
    meta, tracks, frames = result(given)
    assert {name: [e["exp"] for e in v["expressions"].values()] for name, v in meta.items()} == {
        "long": ["The red one, which moves.", "both of them"],
        "even": ["the green box", "what is there"],
    }
    assert [e["obj_id"] for v in meta.values() for e in v["expressions"].values()] == [[1], [1, 2], [2], [1, 2]]
    for clip, wanted in ((FILM, [(1,), (1, 2)]), (SHOTS, [(2,), (1, 2)])):
        entry = meta[clip.name]
        assert entry["frames"] == [f"{i:05d}" for i in range(clip.length)]
        for index, name in enumerate(entry["frames"]):
            picture = cv2.imread(str(frames / clip.name / f"{name}.jpg"))[..., ::-1]
            assert np.abs(picture.astype(int) - clip.picture(index)).mean() < 12
            for expression, things in zip(entry["expressions"].values(), wanted, strict=True):
                np.testing.assert_array_equal(mask_of(tracks, expression, index), expected(clip, things, index))
    assert sum(len(e["anno_id"]) for v in meta.values() for e in v["expressions"].values()) > len(tracks) == 4
    sample = open_records([("mevis", 1)], given / "out").draw(np.random.default_rng(0))
    assert sample.masks.any()


def test_without_masks(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--videos", given / "videos", "--sentences", given / "sentences.csv", "--set_name", "mine"]
    assert run(given, *command) == 0
    assert "no masks here" in capsys.readouterr().out
    meta = json.loads((given / "out" / "mevis" / "mine" / "meta_expressions.json").read_text())
    assert meta["videos"]["long"]["expressions"]["0"] == {"exp": "The red one, which moves."}


def test_jpegs_are_copied_under_their_names_unless_they_lie_on_their_side(given: Path) -> None:
    shutil.rmtree(given / "videos" / "even")
    names = ["b", "a", "c", "d"]
    (given / "videos" / "even").mkdir()
    for index, name in enumerate(names):
        cv2.imwrite(str(given / "videos" / "even" / f"{name}.jpg"), SHOTS.picture(index)[..., ::-1])
    turned = given / "videos" / "even" / "d.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(np.rot90(SHOTS.picture(3))).save(turned, exif=exif, quality=95)
    (given / "sentences.csv").write_text("video,expression\neven,a box\n")
    assert own(given, None) == 2  # a set named train needs masks
    folder = given / "out" / "mevis" / "train" / "JPEGImages" / "even"
    for name in "abc":
        assert (folder / f"{name}.jpg").read_bytes() == (given / "videos" / "even" / f"{name}.jpg").read_bytes()
    with Image.open(folder / "d.jpg") as upright:
        assert upright.size == (WIDTH, HEIGHT)
        assert upright.getexif().get(0x0112, 1) == 1


def test_nothing_is_written_over(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert own(given) == 0
    before = {p: p.read_bytes() for p in (given / "out").rglob("*") if p.is_file()}
    assert own(given) == 2
    assert "mevis/train exists; choose another --out or --set_name" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (given / "out").rglob("*") if p.is_file()} == before


def test_an_import_under_way(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (given / "out" / "mevis" / ".import-train").mkdir(parents=True)
    assert own(given) == 2
    assert "another import is writing it, or was killed; delete it" in capsys.readouterr().err
    assert (given / "out" / "mevis" / ".import-train").is_dir()


def csv(text: str) -> Callable[[Path], object]:
    return lambda given: (given / "sentences.csv").write_text(text)


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no folder": (lambda g: shutil.rmtree(g / "videos"), "masks", r"videos: no such folder"),
    "no sentences": (lambda g: (g / "sentences.csv").unlink(), "masks", r"sentence file not found"),
    "empty sentences": (csv("video,expression\n"), "masks", r"sentences\.csv holds no sentences"),
    "column missing": (csv("video,text\nlong,x\n"), "masks", r"has no column 'expression'; it has: video, text"),
    "field missing": (csv("video,expression\nlong\n"), "masks", r"line 2\.expression must be str, found NoneType"),
    "comma not quoted": (csv("video,expression\nlong,a, b\n"), "masks", r"line 2 has more fields than the header"),
    "not text": (lambda g: (g / "sentences.csv").write_bytes(b"video\xff"), "masks", r"cannot be read as CSV"),
    "expression empty": (csv("video,expression\nlong,.\n"), "masks", r"line 2\.expression is empty"),
    "expression marker": (csv("video,expression\nlong,[SEG]\n"), "masks", r"line 2\.expression contains \[SEG\]"),
    "video unknown": (csv("video,expression\n../long,x\n"), "masks", r"there is no video '\.\./long' in"),
    "object unknown": (csv("video,expression,objects\nlong,x,7\n"), "masks", r"object 7 of 'x' has no mask in"),
    "video twice": (lambda g: (g / "videos" / "long").mkdir(), "masks", r"long\.mp4 would be one video"),
    "no pictures": (
        lambda g: [p.unlink() for p in (g / "videos" / "even").iterdir()], "masks", r"even holds no images",
    ),
    "picture cut": (
        lambda g: (g / "videos" / "even" / "7.png").write_bytes(b"\x89PNG"), "masks", r"7\.png is truncated",
    ),
    "video broken": (lambda g: (g / "videos" / "long.mp4").write_bytes(b"x"), "masks", r"long\.mp4 cannot be"),
    "masks missing": (lambda g: shutil.rmtree(g / "masks" / "even"), "masks", r"masks/even: no such folder"),
    "mask missing": (lambda g: (g / "masks" / "long" / "00003.png").unlink(), "masks", r"00003\.png: missing"),
    "mask size": (
        lambda g: write_labels(g / "masks" / "long" / "00003.png", np.ones((5, 6))), "masks",
        r"00003\.png is 6x5, its frame 40x24",
    ),
    "all masks empty": (
        lambda g: [write_labels(p, np.zeros((HEIGHT, WIDTH))) for p in (g / "masks" / "even").iterdir()], "masks",
        r"object 2 of 'the green box' has no mask in video even; there are: none",
    ),
    "object mask missing": (
        lambda g: (g / "objects" / "even" / "2" / "6.png").unlink(), "objects", r"even/2/6\.png: missing",
    ),
    "codes of a video missing": (
        lambda g: edit(g / "codes.json", lambda v: v.pop("even")), "codes.json", r"has no field 'even'",
    ),
    "too few codes": (
        lambda g: edit(g / "codes.json", lambda v: v["long"]["1"].pop()), "codes.json",
        r"long\.1 has 10 masks, video long has 11 frames",
    ),
    "code corrupt": (
        lambda g: edit(g / "codes.json", lambda v: v["long"]["1"][2].update(counts="0")), "codes.json",
        r"codes\.json: long\.1\[2\]: corrupt RLE",
    ),
    "codes broken": (lambda g: (g / "codes.json").write_text("{"), "codes.json", r"codes\.json is not valid JSON"),
}  # fmt: skip


def test_object_0_is_an_object(given: Path) -> None:
    """It was once taken for "not given", which means all objects."""
    file = given / "zero.json"
    rows = [{"video": "long", "expression": "x", "objects": value} for value in (0, None, "", [])]
    write(file, rows)
    assert [sentence.objects for sentence in read_sentences(file)["long"]] == [("0",), (), (), ()]
    write(file, [{**rows[0], "objects": False}])
    with pytest.raises(InputError, match=r"\[0\]\.objects must be str or int or list, found bool"):
        read_sentences(file)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_own_data_are_named(given: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, masks, message = FAULTS[name]
    damage(given)
    assert own(given, masks) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not list((given / "out").rglob("*train*"))  # neither a half set nor its temporary folder


def test_arguments(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = ("--videos", given / "videos")
    for arguments, message in (
        ((*videos, "--masks", "x", "--annotations", "y"), "not both"),
        (videos, "--sentences is needed"),
        ((*videos, "--annotations", "y", "--still_frames", "0"), "at least 1"),
        ((*videos, "--annotations", given / "y"), "annotation file not found"),
        ((*videos, "--sentences", given / "sentences.csv", "--set_name", "../x"), "not a plain file name"),
    ):
        try:
            status = run(given, *arguments)
        except SystemExit as stop:
            status = int(str(stop.code))
        assert status == 2
        assert message in capsys.readouterr().err


# --- COCO and YouTube-VIS -------------------------------------------------------------------------------------

SQUARE = [[8.0, 4.0, 20.0, 4.0, 20.0, 12.0, 8.0, 12.0]]


def raw_runs(mask: np.ndarray) -> dict[str, Any]:
    """An uncompressed run-length code."""
    flat = mask.flatten(order="F")
    borders = np.flatnonzero(np.diff(flat.astype(int))) + 1
    runs = np.diff([0, *borders, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


@pytest.fixture
def vis(tmp_path: Path) -> Path:
    """A YouTube-VIS file about "even": compressed and uncompressed codes, polygons, null and empty lists."""
    folder = tmp_path / "videos" / "deep" / "even"
    folder.mkdir(parents=True)
    for index in range(SHOTS.length):
        cv2.imwrite(str(folder / f"{index:05d}.jpg"), SHOTS.picture(index)[..., ::-1])
    masks = [[SHOTS.mask(thing, i) for i in range(SHOTS.length)] for thing in (1, 2)]
    first = [encode_rle(mask) if index % 2 else raw_runs(mask) for index, mask in enumerate(masks[0])]
    second: list[Any] = [encode_rle(mask) if mask.any() else None for mask in masks[1]]
    write(
        tmp_path / "vis.json",
        {
            "videos": [{"id": 5, "file_names": [f"deep/even/{i:05d}.jpg" for i in range(SHOTS.length)]}],
            "categories": [{"id": 1, "name": "giant_panda"}, {"id": 2, "name": "box"}],
            "annotations": [
                {"id": 31, "video_id": 5, "category_id": 2, "segmentations": first},
                {"id": 40, "video_id": 5, "category_id": 1, "segmentations": second},
                {"id": 41, "video_id": 5, "category_id": 2, "segmentations": [SQUARE, [], *[None] * 6]},
            ],
        },
    )
    return tmp_path


def annotated(tmp_path: Path, file: str, *more: Any) -> int:
    return run(tmp_path, "--annotations", tmp_path / file, "--videos", tmp_path / "videos", *more)


def test_youtube_vis_with_category_names(vis: Path) -> None:
    assert annotated(vis, "vis.json") == 0
    meta, tracks, frames = result(vis)
    entry = meta["deep_even"]
    assert [(e["exp"], e["obj_id"]) for e in entry["expressions"].values()] == [
        ("box", [31, 41]),
        ("giant panda", [40]),
    ]
    boxes, panda = (expression["anno_id"] for expression in entry["expressions"].values())
    square = np.zeros((HEIGHT, WIDTH), np.bool_)
    square[4:12, 8:20] = True
    for index in range(SHOTS.length):
        for anno, expected in (
            (boxes[0], SHOTS.mask(1, index)),
            (boxes[1], square if index == 0 else np.zeros_like(square)),
            (panda[0], SHOTS.mask(2, index)),
        ):
            np.testing.assert_array_equal(decode_rle(tracks[str(anno)][index], HEIGHT, WIDTH, "m"), expected)
    assert (frames / "deep_even" / "00003.jpg").read_bytes() == (
        vis / "videos" / "deep" / "even" / "00003.jpg"
    ).read_bytes()


def test_youtube_vis_with_sentences(vis: Path) -> None:
    (vis / "s.csv").write_text("video,expression,objects\ndeep_even,what moves right,31\n")
    assert annotated(vis, "vis.json", "--sentences", vis / "s.csv") == 0
    meta, tracks, _ = result(vis)
    assert [e["obj_id"] for e in meta["deep_even"]["expressions"].values()] == [[31]]
    assert len(tracks) == 1


def test_coco_pictures_become_clips(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("one", "two", "none"):
        cv2.imwrite(str(tmp_path / "videos" / f"{name}.jpg"), SHOTS.picture(0)[..., ::-1])
    names = ("one", "two", "none")
    write(
        tmp_path / "coco.json",
        {
            "images": [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate(names)],
            "categories": [{"id": 3, "name": "cat"}],
            "annotations": [
                {"id": 1, "image_id": 0, "category_id": 3, "segmentation": SQUARE},
                {"id": 2, "image_id": 0, "category_id": 3, "segmentation": raw_runs(SHOTS.mask(1, 0))},
                {"id": 3, "image_id": 1, "category_id": 3, "segmentation": SQUARE},
            ],
        },
    )
    assert annotated(tmp_path, "coco.json", "--still_frames", 5) == 0
    meta, tracks, frames = result(tmp_path)
    assert {name: entry["expressions"]["0"]["obj_id"] for name, entry in meta.items()} == {
        "one": [1, 2],
        "two": [3],
    }
    assert meta["one"]["frames"] == [f"{i:05d}" for i in range(5)]
    assert len({(frames / "one" / f"{name}.jpg").read_bytes() for name in meta["one"]["frames"]}) == 1
    assert all(len(track) == 5 and track.count(track[0]) == 5 for track in tracks.values())


VIS_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no annotations": (lambda v: v.pop("annotations"), r"has no field 'annotations'"),
    "no categories": (lambda v: v.pop("categories"), r"has no field 'categories'"),
    "no images": (lambda v: v.pop("videos"), r"has no field 'images'"),
    "no id": (lambda v: v["videos"][0].pop("id"), r"videos\[0\] has no field 'id'"),
    "no files": (lambda v: v["videos"][0].update(file_names=[]), r"videos\[0\]\.file_names is empty"),
    "file leaves": (lambda v: v["videos"][0]["file_names"].append("../x.jpg"), r"'\.\./x\.jpg' is not a plain"),
    "file missing": (
        lambda v: v["videos"][0]["file_names"].__setitem__(3, "deep/even/x.jpg"), r"not found: .*deep/even/x\.jpg",
    ),
    "video twice": (lambda v: v["videos"].append(v["videos"][0] | {"id": 6}), r"second video named 'deep_even'"),
    "annotation twice": (lambda v: v["annotations"][1].update(id=31), r"annotations\[1\] is the second .* id 31"),
    "no segmentations": (lambda v: v["annotations"][0].pop("segmentations"), r"has no field 'segmentations'"),
    "too few": (lambda v: v["annotations"][0]["segmentations"].pop(), r"has 7 segmentations, its video 8 frames"),
    "no category": (lambda v: v["annotations"][0].update(category_id=9), r"category_id 9 is in no entry"),
    "category empty": (lambda v: v["categories"][0].update(name=" "), r"categories\[0\]\.name is empty"),
    "two points": (
        lambda v: v["annotations"][2]["segmentations"].__setitem__(0, [[1, 2, 3, 4]]),
        r"annotations\[2\]\.segmentations\[0\] must be null, a run-length code, or polygons",
    ),
    "nothing to import": (lambda v: v["annotations"].clear(), r"no video has a sentence"),
    "code of another size": (
        lambda v: v["annotations"][0]["segmentations"].__setitem__(1, raw_runs(np.ones((4, 4), bool))),
        r"annotations\[0\]\.segmentations\[1\]: mask of 4x4 for a frame of 24x40",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VIS_FAULTS)
def test_faults_of_annotation_files_are_named(vis: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = VIS_FAULTS[name]
    edit(vis / "vis.json", change)
    assert annotated(vis, "vis.json") == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "vis.json" in said or "x.jpg" in said
    assert not list((vis / "out").rglob("*train*"))


@pytest.mark.parametrize(
    "value", [3, "x", [[]], [[1, 2, 3, 4, 5]], [["a"] * 6], [[1, 2, 3, 4, 5, float("nan")]], [[True] * 6]]
)
def test_what_is_no_segmentation(value: Any) -> None:
    with pytest.raises(InputError, match="here must be null, a run-length code, or polygons"):
        segmentation_mask(value, 4, 4, "here")
