"""Whole runs through real processes, with a stand-in for the model: completeness, faults, resuming."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import pytest
from run_support import DataSet, Ended, Launch, mask_bytes, summary, workers_of

from glus.masks import read_mask

Run = Callable[..., Ended]


def test_run_leaves_every_mask_under_its_frames_name(dataset: DataSet, run: Run, tmp_path: Path) -> None:
    ended = run()
    assert ended.status == 0, ended.err
    masks = mask_bytes(tmp_path / "out")
    assert masks.keys() == dataset.mask_files
    facts = summary(tmp_path / "out")
    assert facts["complete"] is True
    assert facts["items"] == 10
    assert facts["frames"] == len(dataset.mask_files)
    assert facts["failures"] == 3  # frames 0, 3, 6 of the expression that goes unseen
    assert facts["workers"] == 2
    assert facts["seconds"] > 0
    assert not read_mask(tmp_path / "out/boats/1/00003.png").any()
    assert read_mask(tmp_path / "out/boats/1/00004.png").any()
    picture = cv2.imread(str(tmp_path / "out/boats/0/00000.png"), cv2.IMREAD_UNCHANGED)
    assert picture.ndim == 2
    assert set(picture.ravel().tolist()) == {0, 255}


def test_number_of_workers_does_not_change_the_masks(run: Run, tmp_path: Path) -> None:
    assert run(save="one", workers=1).status == 0
    assert run(save="four", workers=4).status == 0
    assert mask_bytes(tmp_path / "one") == mask_bytes(tmp_path / "four")


def test_second_run_has_nothing_to_do(run: Run, tmp_path: Path) -> None:
    run()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    ended = run()
    assert ended.status == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")} == before
    assert summary(tmp_path / "out")["frames_this_run"] == 0


@pytest.mark.parametrize(
    "damage", ["mask removed", "mask emptied", "marker removed", "marker emptied", "folder removed"]
)
def test_damaged_item_is_redone(damage: str, run: Run, tmp_path: Path) -> None:
    run()
    save = tmp_path / "out"
    expected = mask_bytes(save)
    if damage == "mask removed":
        (save / "cats/1/00010.png").unlink()
    elif damage == "mask emptied":
        (save / "cats/1/00010.png").write_bytes(b"")
    elif damage == "marker removed":
        (save / ".glus/done/cats/1.json").unlink()
        (save / "cats/1/stale.png").write_bytes(b"x")
        (save / ".glus/done/cats/.tmp-1-1.json").write_bytes(b"x")
    elif damage == "marker emptied":
        (save / ".glus/done/cats/1.json").write_bytes(b"")
    else:
        shutil.rmtree(save / "cats/1")
    assert run().status == 0
    assert mask_bytes(save) == expected
    assert summary(save)["frames_this_run"] == 9
    assert not list(save.rglob(".tmp-*"))


def test_killed_and_resumed_runs_end_in_the_same_bytes(launch: Launch, run: Run, tmp_path: Path) -> None:
    assert run(save="calm").status == 0
    expected = contents(tmp_path / "calm")
    dice = random.Random(5)
    kills = folder = 0
    while kills < 10:
        save = tmp_path / f"out{folder}"
        process = launch(seconds=0.04, save=save)
        time.sleep(0.4 + dice.random() * 1.2)
        with suppress(ProcessLookupError):
            victim = dice.choice([process.pid, *workers_of(process)])
            os.kill(victim, signal.SIGKILL)
            if victim != process.pid:  # the run goes on without that worker; then end it as hard
                time.sleep(dice.random() * 0.2)
                process.kill()
            kills += process.wait() == -signal.SIGKILL
        process.communicate(timeout=60)
        assert mask_bytes(save).items() <= expected.items(), "a mask that is visible must be final"
        if (save / "summary.json").exists():  # done before it could be killed: take the next folder
            folder += 1
    for save in [path for path in tmp_path.glob("out*") if path.is_dir()]:
        ended = run(save=save)
        assert ended.status == 0, ended.err
        assert contents(save) == expected


def contents(save: Path) -> dict[str, bytes]:
    """Masks and markers."""
    done = save / ".glus" / "done"
    markers = {f".glus/done/{p.relative_to(done)}": p.read_bytes() for p in done.rglob("[!.]*.json")}
    assert len(markers) == 10
    return mask_bytes(save) | markers


def wait_for_masks(process: subprocess.Popen[str], save: Path) -> None:
    deadline = time.monotonic() + 30
    while not any(save.rglob("*.png")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run wrote nothing"
        time.sleep(0.02)


def test_killed_worker_is_reported_and_the_others_finish(
    dataset: DataSet, launch: Launch, run: Run, tmp_path: Path
) -> None:
    process = launch(seconds=0.05)
    wait_for_masks(process, tmp_path / "out")
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "SIGKILL" in err
    assert "fewer --workers" in err
    assert 0 < summary(tmp_path / "out")["items"] < 10
    assert run().status == 0
    assert mask_bytes(tmp_path / "out").keys() == dataset.mask_files


def test_interrupt_is_clean_and_resumable(dataset: DataSet, launch: Launch, run: Run, tmp_path: Path) -> None:
    process = launch(seconds=0.05)
    wait_for_masks(process, tmp_path / "out")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: parent and workers alike
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "again to continue" in err
    assert run().status == 0
    assert mask_bytes(tmp_path / "out").keys() == dataset.mask_files


def test_two_launches_at_once_never_write_together(dataset: DataSet, launch: Launch, tmp_path: Path) -> None:
    first, second = launch(seconds=0.02), launch(seconds=0.02)
    ends = [process.communicate(timeout=60) for process in (first, second)]
    assert first.returncode == 0, ends
    assert second.returncode == 0, ends  # it waited, and found everything done
    assert sorted(int("items are complete already" in err) for _, err in ends) == [0, 1]
    assert mask_bytes(tmp_path / "out").keys() == dataset.mask_files


def test_other_settings_are_refused_unless_overwritten(run: Run, tmp_path: Path) -> None:
    run("--mem_stride", "3")
    ended = run("--mem_stride", "2")
    assert ended.status == 2
    assert "mem_stride: 3 there, 2 now" in ended.err
    assert run("--mem_stride", "2", "--overwrite").status == 0
    assert run("--mem_stride", "2").status == 0


def test_a_run_that_failed_early_leaves_nothing_in_the_way(run: Run) -> None:
    """A mistyped option must not make the folder refuse the corrected command."""
    assert run("--version", "broken").status == 2
    assert run("--mem_stride", "2").status == 0
    assert run("--version", "broken").status == 2
    assert run("--mem_stride", "2").status == 0


def test_changed_expressions_are_refused(dataset: DataSet, run: Run) -> None:
    run()
    path = dataset.root / "mevis/valid_u/meta_expressions.json"
    path.write_text(path.read_text().replace("black cat", "white cat"))
    ended = run()
    assert ended.status == 2
    assert "items_sha256" in ended.err


def test_masks_of_another_program_are_left_alone(run: Run, tmp_path: Path) -> None:
    foreign = tmp_path / "out/cats/0/00000.png"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"precious")
    ended = run()
    assert ended.status == 2
    assert "--overwrite" in ended.err
    assert foreign.read_bytes() == b"precious"


def test_limit_then_all(dataset: DataSet, run: Run, tmp_path: Path) -> None:
    assert run("--limit", "3").status == 0
    assert summary(tmp_path / "out")["items"] == 3
    assert run().status == 0
    assert mask_bytes(tmp_path / "out").keys() == dataset.mask_files


def test_key_frames_give_both_directions_their_own_names(dataset: DataSet, run: Run, tmp_path: Path) -> None:
    table = {"cats_0": "00020", "cats_1": 40, "boats_0": "00006", "still_0": "frame_3"}
    path = tmp_path / "kf.json"
    path.write_text(json.dumps(table))
    ended = run("--use_kf", "--score_json", str(path))
    assert ended.status == 0, ended.err
    assert "no entry for 6 of 10" in ended.err
    assert mask_bytes(tmp_path / "out").keys() == dataset.mask_files
    assert run(save="plain").status == 0
    before = cv2.imread(str(dataset.frame("cats", "00025")))[..., 2]
    assert (read_mask(tmp_path / "out/cats/0/00025.png") == read_mask(tmp_path / "plain/cats/0/00025.png")).all()
    assert before.shape == read_mask(tmp_path / "out/cats/0/00005.png").shape
    # in the stand-in the backward pass lowers the threshold, so up to the key frame masks can only grow
    for name in ("00000", "00020"):
        forward, backward = (read_mask(tmp_path / save / f"cats/0/{name}.png") for save in ("plain", "out"))
        assert (backward & forward == forward).all()


def test_key_frame_that_does_not_exist(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "kf.json"
    path.write_text(json.dumps({"cats_0": "00021"}))
    ended = run("--use_kf", "--score_json", str(path))
    assert ended.status == 2
    assert "cats_0" in ended.err
    assert run("--use_kf").status == 2


def test_missing_frame_costs_only_its_video(dataset: DataSet, run: Run, tmp_path: Path) -> None:
    dataset.frame("cats", "00020").unlink()
    ended = run()
    assert ended.status == 2
    assert "00020.jpg" in ended.err
    assert mask_bytes(tmp_path / "out").keys() == {f for f in dataset.mask_files if not f.startswith("cats")}
    assert set(summary(tmp_path / "out")["errors"]) == {"cats/0", "cats/1"}


def test_truncated_image_costs_only_its_video_and_can_be_repaired(
    dataset: DataSet, run: Run, tmp_path: Path
) -> None:
    frame = dataset.frame("dogs", "00002")
    whole = frame.read_bytes()
    frame.write_bytes(whole[: len(whole) // 2])
    ended = run()
    assert ended.status == 2
    assert "dogs/3" in ended.err
    assert "truncated" in ended.err
    assert mask_bytes(tmp_path / "out").keys() == {f for f in dataset.mask_files if not f.startswith("dogs")}
    frame.write_bytes(whole)
    assert run().status == 0
    assert mask_bytes(tmp_path / "out").keys() == dataset.mask_files


def test_data_set_without_any_frames_stops_before_the_model_loads(
    dataset: DataSet, run: Run, tmp_path: Path
) -> None:
    shutil.rmtree(dataset.root / "mevis/valid_u/JPEGImages")
    ended = run()
    assert ended.status == 2
    assert "frame file not found" in ended.err


def test_checkpoint_error_is_told_once(run: Run) -> None:
    ended = run("--version", "broken")
    assert ended.status == 2
    assert ended.err.count("checkpoint broken cannot be loaded") == 1


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--val_set", "nothing"], "unknown data set"),
        (["--set_name", "nothing"], "nothing"),
        (["--workers", "0"], "--workers"),
        (["--limit", "0"], "--limit"),
        (["--mem_stride", "0"], "mem_stride"),
        (["--device", "cuda"], "GPU"),
    ],
)
def test_bad_arguments(extra: list[str], told: str, run: Run) -> None:
    if "cuda" in extra and shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU here")
    ended = run(*extra)
    assert ended.status == 2
    assert told in ended.err
    assert "Traceback" not in ended.err


def test_output_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    ended = run(save="file/out")
    assert ended.status == 2
    assert "cannot write" in ended.err
    assert "Traceback" not in ended.err


def test_disk_full_keeps_what_is_complete(dataset: DataSet, run: Run, tmp_path: Path, small_disk: Path) -> None:
    assert run().status == 0
    expected = mask_bytes(tmp_path / "out")
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 900_000)
    save = small_disk / "masks"
    ended = run(save=save)
    assert ended.status == 2, ended.err
    assert "No space left" in ended.err
    assert "Traceback" not in ended.err
    kept = mask_bytes(save)
    assert 0 < len(kept) < len(expected)
    assert kept.items() <= expected.items()
    assert not list((save / ".glus").rglob("*.png"))  # nothing that was begun
    filler.unlink()
    assert run(save=save).status == 0
    assert mask_bytes(save) == expected
