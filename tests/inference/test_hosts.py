"""Several hosts on one folder: shares without talking, who may enter, and whole runs of two launch groups."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import numpy as np
import pytest
from run_support import FAKE_RUN, DataSet, Ended, Launch, mask_bytes, summary, workers_of

from glus.data.records import Record
from glus.errors import InputError
from glus.inference import infer_command
from glus.inference.hosts import Launch as LaunchRecord
from glus.inference.hosts import Membership, door, entered
from glus.inference.items import Item
from glus.inference.store import Store
from glus.inference.writing import BackgroundWriter
from glus.launched import Launched

SETTINGS = {"format": 1, "model": {"version": "fake", "stride": 3}}


def items_of(videos: int, expressions: int, frames: int = 3) -> list[Item]:
    names = tuple(map(str, range(frames)))
    return [
        Item(Record("mevis", f"v{v:02d}", str(e), "a thing", names, Path("frames")))
        for v in range(videos)
        for e in range(expressions)
    ]


ITEMS = items_of(6, 2)


def enter(
    save: Path, rank: int, world: int = 2, settings: dict | None = None, items: list[Item] | None = None
) -> AbstractContextManager[Membership]:
    return entered(Store(save), Launched(rank, world), settings or SETTINGS, items or ITEMS, wait_seconds=0.1)


def complete(store: Store, items: list[Item]) -> None:
    with closing(BackgroundWriter()) as background:
        for item in items:
            writer = store.writer(item, "0/0", background)
            for frame in range(len(item.record.frames)):
                writer.add(frame, np.ones((4, 5), bool), failed=False)
            writer.publish()


def finish(member: Membership, **more: object) -> None:
    with door(member.store):
        member.reported({"items": 0, "seconds": 1.0, "frames_this_run": 0, "workers": 1, "errors": {}, **more})


@pytest.mark.parametrize("hosts", [1, 2, 3, 7])
def test_shares_are_disjoint_whole_and_balanced(hosts: int) -> None:
    dice = random.Random(hosts)
    items = [
        item for v in range(30) for item in _video(f"v{v}", dice.choice([1, 20, 60, 200]), dice.randint(1, 9))
    ]
    pending = dice.sample([item.key for item in items], len(items) * 2 // 3)
    launch = LaunchRecord("t", hosts, SETTINGS, "", tuple(pending))
    shares = [launch.share(items, rank) for rank in range(hosts)]
    assert sorted(item.key for share in shares for item in share) == sorted(pending)
    again = LaunchRecord("t", hosts, SETTINGS, "", tuple(pending[::-1]))
    assert [again.share(items[::-1], rank) for rank in range(hosts)] == shares
    loads = [sum(item.steps for item in share) for share in shares]
    assert max(loads) - min(loads) <= max(item.steps for item in items) + sum(loads) / (4 * hosts)


def _video(name: str, frames: int, expressions: int) -> list[Item]:
    names = tuple(map(str, range(frames)))
    return [Item(Record("mevis", name, str(e), "it", names, Path("frames"))) for e in range(expressions)]


def test_a_late_host_finds_the_share_it_would_have_had(tmp_path: Path) -> None:
    """Also when the other has done its part and left; nothing is lost and nothing done twice."""
    with enter(tmp_path, 0) as first:
        mine = first.launch.share(ITEMS, 0)
        complete(first.store, mine)
        with enter(tmp_path, 1) as second:  # while it runs
            assert second.launch == first.launch
            theirs = second.launch.share(ITEMS, 1)
        finish(first)
    with enter(tmp_path, 1) as late:  # the second left without a report: it was killed
        assert late.launch.share(ITEMS, 1) == theirs
        assert sorted(item.key for item in mine + theirs) == [item.key for item in ITEMS]
        complete(late.store, theirs)
        finish(late)
    with enter(tmp_path, 1) as rerun:  # all had finished: a launch of its own
        assert rerun.launch.pending == ()


def test_a_rerun_shares_out_what_is_missing(tmp_path: Path) -> None:
    with enter(tmp_path, 0) as first:
        complete(first.store, first.launch.share(ITEMS, 0))
        finish(first, deaths=["worker 1 ended"])  # did not finish: it will come again
    for rank, world in ((2, 3), (1, 2)):
        with enter(tmp_path, rank, world) as member:
            assert member.launch.token != first.launch.token
            left = [item for item in ITEMS if member.store.completed(item) is None]
            shares = [member.launch.share(ITEMS, other) for other in range(world)]
            assert sorted(item.key for share in shares for item in share) == [item.key for item in left]
            assert 0 < len(left) < len(ITEMS)
            assert len(shares[rank]) == len(left) // world


def test_unfinished_masks_of_a_dead_host_are_dropped_and_of_a_living_one_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with enter(tmp_path, 0):
        for host in (0, 1):
            (store.partial(f"{host}/0") / "v00/0").mkdir(parents=True)
        with enter(tmp_path, 1):
            assert store.partial("0/0").exists()
            assert not store.partial("1/0").exists()
    with enter(tmp_path, 1):
        assert not store.partial("0/0").exists()


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"rank": 0, "world": 2}, rf"process {os.getpid()} on {socket.gethostname()}"),
        ({"rank": 0, "world": 1}, "is writing to"),
        ({"rank": 1, "world": 1 + 2}, "of 2 hosts"),
        ({"rank": 1, "settings": {"format": 2}}, "is writing to"),
        ({"rank": 1, "items": ITEMS[:3]}, "choose another output folder"),
    ],
    ids=("same rank", "other size", "larger", "other settings", "other items"),
)
def test_another_run_is_kept_out(other: dict, told: str, tmp_path: Path) -> None:
    with enter(tmp_path, 0) as member:
        complete(member.store, ITEMS[:1])
        with pytest.raises(InputError, match=told), enter(tmp_path, **other):
            pass
        with enter(tmp_path, 1) as partner:  # those who were turned away hold nothing
            assert partner.launch == member.launch
    with enter(tmp_path, 1, 4) as member:
        assert len(member.launch.pending) == len(ITEMS) - 1
    with pytest.raises(InputError, match=r"other settings .*format: 1 there, 2 now"):
        enter(tmp_path, 1, settings={"format": 2}).__enter__()


def test_one_who_waits_is_let_in_when_the_other_ends(tmp_path: Path) -> None:
    first = enter(tmp_path, 0)
    first.__enter__()
    waiting = entered(Store(tmp_path), Launched(0, 2), SETTINGS, ITEMS, wait_seconds=60)
    with closing(BackgroundWriter()) as thread:
        ended = thread.submit(lambda: (time.sleep(0.3), first.__exit__(None, None, None))[1])
        with waiting as member:
            assert ended.done()
            assert len(member.launch.pending) == len(ITEMS)


def test_a_damaged_launch_record_is_made_anew(tmp_path: Path) -> None:
    with enter(tmp_path, 0) as member:
        record = member.store.records / "launch.json"
    for damage in ("", "[]", "{}", '{"token": 3}'):
        record.write_text(damage)
        with enter(tmp_path, 0) as member:
            assert len(member.launch.pending) == len(ITEMS)


def test_beginning_afresh_is_for_one_host(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--overwrite is for one host"):
        entered(Store(tmp_path), Launched(0, 2), SETTINGS, ITEMS, overwrite=True).__enter__()
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError, match="knows no file locks"):
        enter(tmp_path, 0).__enter__()


def test_processes_of_one_machine_share_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.delenv("SLURM_GPUS_PER_TASK", raising=False)

    def gpus(*place: int) -> list[str]:
        _, environments = infer_command.plan_workers("cuda", None, Launched(*place))
        return [environment["CUDA_VISIBLE_DEVICES"] for environment in environments]

    assert gpus(1, 2, 0, 1) == ["4", "5", "6", "7"]
    assert [gpus(2, 4, 0, 2), gpus(3, 4, 1, 2)] == [["4", "6"], ["5", "7"]]
    with pytest.raises(InputError, match="one process per machine"):
        gpus(0, 8, 0, 8)
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "4")  # each task sees its own
    assert gpus(3, 4, 1, 2) == ["4", "5", "6", "7"]


def host(rank: int, world: int = 2) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world)}


def finished(*processes: subprocess.Popen[str]) -> list[Ended]:
    texts = [process.communicate(timeout=120) for process in processes]
    return [Ended(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def apart() -> tuple[str, ...]:
    """A prefix that gives a command a network and process numbers of its own; none where not permitted."""
    prefix = ("unshare", "--net", "--pid", "--fork", "--kill-child")
    allowed = shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    return prefix if allowed else ()


def test_two_groups_of_two_workers_do_everything_once(dataset: DataSet, launch: Launch, tmp_path: Path) -> None:
    """The groups are those of two machines: each a parent with its workers, nothing shared but the folder."""
    command = (*apart(), sys.executable, str(FAKE_RUN))
    ends = finished(*(launch(variables=host(rank), command=command) for rank in range(2)))
    assert [ended.status for ended in ends] == [0, 0], ends
    save = tmp_path / "out"
    assert mask_bytes(save).keys() == dataset.mask_files
    whole, parts = summary(save), [summary(save, rank) for rank in range(2)]
    assert (whole["complete"], whole["items"], whole["frames"]) == (True, 10, len(dataset.mask_files))
    assert (whole["hosts"], whole["workers"], whole["failures"], whole["errors"]) == ([0, 1], 4, 3, {})
    assert whole["frames_this_run"] == len(dataset.mask_files)  # nothing twice
    assert sum(part["items"] for part in parts) == 10
    assert max(part["frames_this_run"] for part in parts) <= len(dataset.mask_files) / 2 + 9  # the longest item
    assert whole["seconds"] == max(part["seconds"] for part in parts)
    assert sum("reports of 2 of 2 hosts" in ended.out for ended in ends) >= 1


def test_a_killed_host_leaves_its_share_to_the_rerun(
    dataset: DataSet, launch: Launch, run: Callable[..., Ended], tmp_path: Path
) -> None:
    save = tmp_path / "out"
    first, second = (launch(variables=host(rank), seconds=0.1) for rank in range(2))
    deadline = time.monotonic() + 60
    while len(workers_of(second)) < 2 or not any(save.rglob("*.png")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second.kill()
    ends = finished(first, second)
    assert [ended.status for ended in ends] == [0, -9], ends
    assert summary(save)["complete"] is False
    assert summary(save)["hosts"] == [0]
    kept = mask_bytes(save)
    missing = len(dataset.mask_files - kept.keys())
    assert 0 < missing < len(dataset.mask_files)
    ends = finished(*(launch(variables=host(rank, 3), workers=1) for rank in range(3)))  # on three hosts now
    assert [ended.status for ended in ends] == [0, 0, 0], ends
    assert mask_bytes(save).keys() == dataset.mask_files
    assert kept.items() <= mask_bytes(save).items()
    facts = summary(save)
    assert (facts["complete"], facts["hosts"], facts["frames_this_run"]) == (True, [0, 1, 2], missing)
    assert not list((save / ".glus").rglob("*.png"))
    assert run().status == 0  # alone again: nothing to do, and the reports of hosts go
    assert (summary(save)["hosts"], summary(save)["frames_this_run"]) == ([0], 0)
    assert not list(save.glob("summary-*"))


def test_under_torchrun_on_two_nodes(dataset: DataSet, launch: Launch, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1")
    torchrun += ("--master-addr", "127.0.0.1", "--master-port", port)
    groups = [launch(command=(*torchrun, "--node-rank", str(rank), str(FAKE_RUN))) for rank in range(2)]
    ends = finished(*groups)
    assert [ended.status for ended in ends] == [0, 0], ends
    assert mask_bytes(tmp_path / "out").keys() == dataset.mask_files
    facts = summary(tmp_path / "out")
    assert (facts["complete"], facts["hosts"], facts["workers"]) == (True, [0, 1], 4)
    assert facts["frames_this_run"] == len(dataset.mask_files)


def test_under_srun(dataset: DataSet, launch: Launch, tmp_path: Path) -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_JOB_ID": "7"}
    task = {**step, "SLURM_PROCID": "1", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}
    (ended,) = finished(launch(variables=task))
    facts = summary(tmp_path / "out")
    assert (facts["complete"], facts["hosts"]) == (False, [1])
    assert 0 < facts["items"] < 8
    assert "host 1 of 2" in ended.err
    assert (ended.status, facts["errors"]) == (0, {})
    assert "reports of 1 of 2 hosts" in ended.out
