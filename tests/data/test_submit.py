"""Submission zips: contents, determinism, and every way they can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glus.data.submit import TARGETS, main, read_plan, validate_submission
from glus.errors import InputError
from glus.masks import mask_png, write_mask_png

FRAMES = ["00000", "00005", "00010"]
DATASETS = sorted(TARGETS)


def mask(video: str, exp_id: str, frame: str) -> np.ndarray:
    """A mask that no other has; the two videos differ in size."""
    height = 20 if video == "aa" else 24
    random = np.random.default_rng([ord(c) for c in video + exp_id + frame])
    return random.random((height, 31)) < 0.3


def expressions(*videos: str) -> str:
    entry = {"frames": FRAMES, "expressions": {"0": {"exp": "a cat"}, "1": {"exp": "a dog"}}}
    return json.dumps({"videos": dict.fromkeys(videos, entry)})


@pytest.fixture(params=DATASETS)
def dataset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def data(tmp_path: Path, dataset: str) -> Path:
    """A data folder and complete masks in `masks`; `valid` of Ref-YouTube-VOS also lists the test video."""
    if dataset == "mevis":
        files = {"mevis/valid": ("bb", "aa")}
    else:
        root = "Refer-YouTube-VOS/meta_expressions"
        files = {f"{root}/valid": ("bb", "aa", "test_video"), f"{root}/test": ("test_video",)}
    for folder, videos in files.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "meta_expressions.json").write_text(expressions(*videos))
    for video in files[next(iter(files))]:
        for exp_id in "01":
            folder = tmp_path / "masks" / video / exp_id
            folder.mkdir(parents=True)
            for frame in FRAMES:
                write_mask_png(folder / f"{frame}.png", mask(video, exp_id, frame))
    (tmp_path / "masks/summary.json").write_text("{}")
    (tmp_path / "masks/.glus/done").mkdir(parents=True)
    return tmp_path


def submit(data: Path, dataset: str, *options: str) -> bytes:
    out = data / "out.zip"
    arguments = ["--val_set", dataset, "--dataset_dir", str(data), "--masks", str(data / "masks")]
    assert main([*arguments, "--out", str(out), *options]) == 0
    return out.read_bytes()


def validate(data: Path, dataset: str) -> int:
    return main(["--val_set", dataset, "--dataset_dir", str(data), "--validate", str(data / "out.zip")])


def test_contents(data: Path, dataset: str) -> None:
    submit(data, dataset)
    prefix = "Annotations/" if dataset == "refyoutube_vos" else ""
    with zipfile.ZipFile(data / "out.zip") as archive:
        assert archive.namelist() == [
            f"{prefix}{v}/{e}/{f}.png" for v in ("aa", "bb") for e in "01" for f in FRAMES
        ]
        for name in archive.namelist():
            video, exp_id, frame = name.removeprefix(prefix).removesuffix(".png").split("/")
            with archive.open(name) as handle, Image.open(handle) as image:
                assert image.mode == "L"
                np.testing.assert_array_equal(np.asarray(image), mask(video, exp_id, frame) * np.uint8(255))
    assert validate(data, dataset) == 0


def test_same_masks_give_the_same_bytes(data: Path, dataset: str) -> None:
    """Whatever their encoding, the time, and the number of threads."""
    first = submit(data, dataset, "--workers", "1")
    for path in (data / "masks").glob("*/*/*.png"):
        with Image.open(path) as image:
            eight = image.convert("L")
        eight.save(path, compress_level=1)
    assert submit(data, dataset, "--workers", "4") == first


def test_every_fault_is_listed_and_nothing_written(data: Path, dataset: str) -> None:
    masks = data / "masks"
    (masks / "aa/0/00005.png").unlink()
    for path in (masks / "aa/1").iterdir():
        path.unlink()
    write_mask_png(masks / "aa/0/99999.png", mask("aa", "0", "x"))
    write_mask_png(masks / "bb/0/00000.png", np.zeros((9, 9), np.bool_))
    values = np.full((24, 31), 1, np.uint8)
    Image.fromarray(values).save(masks / "bb/0/00005.png")
    Image.fromarray(np.zeros((24, 31, 3), np.uint8)).save(masks / "bb/0/00010.png")
    good = (masks / "bb/1/00000.png").read_bytes()
    (masks / "bb/1/00000.png").write_bytes(good[:-20])
    (masks / "cc/0").mkdir(parents=True)
    write_mask_png(masks / "cc/0/00000.png", np.zeros((9, 9), np.bool_))
    with pytest.raises(InputError) as caught:
        submit(data, dataset)
    text = str(caught.value)
    for wanted in (
        "aa/0/00005.png: missing in",
        "aa/1/ (3 masks): missing in",
        "aa/0/99999.png: not asked for",
        "cc/0/00000.png: not asked for",
        "bb/0/00005.png: has values other than 0 and 255",
        "bb/0/00010.png: not a single-channel gray PNG",
        "bb/1/00000.png: truncated",
        "but bb/0/00000.png is 9x9",
    ):
        assert wanted in text, wanted
    assert sorted(p.name for p in data.iterdir() if "zip" in p.name) == []


def test_an_older_zip_survives_a_failure(data: Path, dataset: str) -> None:
    before = submit(data, dataset)
    (data / "masks/aa/0/00005.png").unlink()
    with pytest.raises(InputError, match="1 faults"):
        submit(data, dataset)
    assert (data / "out.zip").read_bytes() == before


def test_surplus_masks_can_be_left_out(data: Path, dataset: str) -> None:
    before = submit(data, dataset)
    write_mask_png(data / "masks/aa/0/99999.png", mask("aa", "0", "x"))
    with pytest.raises(InputError, match=r"99999\.png: not asked for"):
        submit(data, dataset)
    assert submit(data, dataset, "--allow_extra") == before


def rewrite(path: Path, change: Any) -> None:
    """Write a zip again with its entries, name -> content, changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def edit(name: str, content: bytes) -> Any:
    """Replace the entry whose name ends so, whatever the prefix."""

    def change(entries: dict[str, bytes]) -> None:
        entries[next(n for n in entries if n.endswith(name))] = content

    return change


def png(samples: np.ndarray, folder: Path) -> bytes:
    path = folder / "one.png"
    Image.fromarray(samples).save(path)
    return path.read_bytes()


def test_validation_names_what_is_wrong(data: Path, dataset: str) -> None:
    whole = submit(data, dataset)
    shape = mask("aa", "0", "0").shape
    cases: list[tuple[Any, str]] = [
        (lambda e: e.pop(sorted(e)[0]), "aa/0/00000.png: missing in"),
        (lambda e: e.update({f"{sorted(e)[0]}.txt": b""}), "not asked for"),
        (edit("aa/0/00000.png", b"junk"), "aa/0/00000.png: not a PNG"),
        (edit("aa/0/00005.png", mask_png(np.zeros((9, 9)), 8)), "aa/0/00005.png: 9x9, but aa/0/00000.png"),
        (edit("aa/0/00000.png", mask_png(np.zeros(shape), 1)), "1 bits per pixel"),
        (edit("aa/0/00000.png", png(np.full(shape, 7, np.uint8), data)), "has values other than"),
        (edit("aa/0/00000.png", png(np.zeros((*shape, 3), np.uint8), data)), "not a single-channel gray"),
    ]
    for change, message in cases:
        (data / "out.zip").write_bytes(whole)
        rewrite(data / "out.zip", change)
        with pytest.raises(InputError, match="1 faults") as caught:
            validate(data, dataset)
        assert message in str(caught.value)


def test_folders_and_compression_in_a_zip_do_not_matter(data: Path, dataset: str) -> None:
    submit(data, dataset)
    rewrite(data / "out.zip", lambda entries: entries.update({"aa/": b""}))
    assert validate(data, dataset) == 0


def test_wrong_prefix(data: Path, dataset: str) -> None:
    submit(data, dataset)
    other = next(name for name in DATASETS if name != dataset)
    meta = next(data.rglob("valid/meta_expressions.json"))
    plan = read_plan(TARGETS[dataset], meta, next(data.rglob("test/meta_expressions.json"), None))
    with pytest.raises(InputError, match="faults"):
        validate_submission(TARGETS[other], plan, data / "out.zip")


def test_damaged_zip(data: Path, dataset: str) -> None:
    whole = submit(data, dataset)
    (data / "out.zip").write_bytes(whole[:-30])
    with pytest.raises(InputError, match="not a readable zip"):
        validate(data, dataset)
    damaged = bytearray(whole)
    damaged[100] ^= 255
    (data / "out.zip").write_bytes(damaged)
    with pytest.raises(InputError, match=r"aa/0/00000\.png"):
        validate(data, dataset)
    (data / "out.zip").unlink()
    with pytest.raises(InputError, match="not found"):
        validate(data, dataset)


def test_wrong_options(data: Path, dataset: str) -> None:
    base = ["--val_set", dataset, "--dataset_dir", str(data)]
    for options, message in (
        ([], "give --masks and --out"),
        (["--masks", "x"], "give --masks and --out"),
        (["--masks", str(data / "none"), "--out", str(data / "o.zip")], "no such folder"),
        (["--masks", str(data / "masks"), "--out", str(data / "no/o.zip")], "cannot write"),
        (["--set_name", "nowhere", "--validate", "x"], "not found"),
        (["--masks", str(data / "masks"), "--out", str(data / "o.zip"), "--workers", "0"], "--workers must be at"),
    ):
        with pytest.raises(InputError, match=message):
            main([*base, *options])


def test_the_test_videos_must_be_known(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(expressions("aa"))
    with pytest.raises(InputError, match="--test_meta"):
        main(["--val_set", "refyoutube_vos", "--meta", str(tmp_path / "meta.json"), "--validate", "x"])


def test_command_line(data: Path, dataset: str) -> None:
    (data / "masks/aa/0/00005.png").unlink()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "glus", "data", "submit", "--val_set", dataset, "--dataset_dir", data),
            *("--masks", data / "masks", "--out", data / "out.zip"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "aa/0/00005.png: missing" in done.stderr
    assert not (data / "out.zip").exists()
