"""The page under load: several visitors at once upload, segment and download, again and again.

Starts `python -m glus app` with a clip of the generator to send, and watches it from outside: what fails, how much
memory the server takes over time, in which order jobs end, what stays on the disk. The last line is JSON.

    python benchmarks/app_load.py --clients 4 --minutes 10
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradio_client import Client, handle_file

from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.video import generate_video
from glus.video import open_frames, write_video

SAMPLE_SECONDS = 2.0
CLOSE = 0.5  # seconds between two submissions whose order is not judged


@dataclass
class Log:
    """What the clients have seen; appended by several threads."""

    jobs: list[tuple[float, float, int]] = field(default_factory=list)  # submitted, ended, client
    failures: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, MiB


def visit(address: str, number: int, clip: Path, sentence: str, until: float, log: Log, place: Path) -> None:
    """One visitor: uploads and segments until the time is over."""
    try:
        client = Client(address, verbose=False, download_files=str(place / f"client-{number}"))
        while time.monotonic() < until:
            client.predict([handle_file(str(clip))], api_name="/upload")
            submitted = time.monotonic()
            answer = client.predict(sentence, api_name="/segment")
            log.jobs.append((submitted, time.monotonic(), number))
            check(answer, len(open_frames(clip)))
        client.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what this program is to find
        log.failures.append(f"client {number}: {type(error).__name__}: {error}")


def check(answer: Any, frames: int) -> None:
    """The overlay that a visitor was given plays, from the first frame to the last."""
    text = json.dumps(answer, default=str)
    videos = {path for path in re.findall(r'"([^"]+overlay\.mp4)"', text) if Path(path).is_file()}
    if "Done." not in text or not videos:
        raise ValueError(f"no result: {text:.300}")
    if any(len(open_frames(path)) != frames for path in videos):
        raise ValueError("the overlay video is not whole")


def overtakings(jobs: list[tuple[float, float, int]]) -> int:
    """Pairs of jobs of which the one that came clearly later ended first."""
    return sum(b[0] > a[0] + CLOSE and b[1] < a[1] for a in jobs for b in jobs)


def resident(pid: int) -> float:
    """MiB of memory a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def watch(pid: int, started: float, ended: threading.Event, log: Log) -> None:
    while not ended.wait(SAMPLE_SECONDS):
        log.memory.append((time.monotonic() - started, resident(pid)))


def per_minute(memory: list[tuple[float, float]]) -> dict[int, float]:
    """Minute -> largest memory in it."""
    table: dict[int, float] = {}
    for seconds, size in memory:
        table[int(seconds // 60)] = max(size, table.get(int(seconds // 60), 0.0))
    return table


def report(log: Log, left: int) -> dict[str, Any]:
    table = per_minute(log.memory)
    for minute, size in table.items():
        done = sum(int((end - min(j[0] for j in log.jobs)) // 60) == minute for _, end, _ in log.jobs)
        print(f"minute {minute}: {size:.0f} MiB at most, {done} jobs")
    for failure in log.failures:
        print(f"failure: {failure}")
    waits = sorted(end - begin for begin, end, _ in log.jobs) or [0.0]
    counts = [sum(number == client for *_, client in log.jobs) for number in sorted({j[2] for j in log.jobs})]
    sizes = [size for _, size in log.memory] or [0.0]
    half = len(sizes) // 2
    return {
        "jobs": len(log.jobs),
        "jobs_per_client": counts,
        "failures": len(log.failures),
        "overtakings": overtakings(log.jobs),
        "seconds_median": round(waits[len(waits) // 2], 2),
        "seconds_longest": round(waits[-1], 2),
        "memory_mib_first_half": round(max(sizes[:half] or sizes), 1),
        "memory_mib_second_half": round(max(sizes[half:]), 1),
        "files_left": left,
    }


def start_server(place: Path, clips: int) -> tuple[subprocess.Popen[str], str]:
    argv = [sys.executable, "-m", "glus", "app", "--device", "cpu", "--clips", str(clips)]
    server = subprocess.Popen(argv, env={**os.environ, "TMPDIR": str(place)}, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    said = re.search(r"http://\S+", server.stdout.readline())
    if said is None:
        raise SystemExit(f"the page did not start: status {server.wait()}")
    return server, said[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--frames", type=int, default=12, help="of the clip that is sent")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        place = Path(base) / "server"
        place.mkdir()
        made = generate_video(7, 0, SyntheticConfig(frames=args.frames))
        clip = Path(base) / "clip.mp4"
        write_video(clip, made.frames)
        server, address = start_server(place, clips=0)
        log, ended, started = Log(), threading.Event(), time.monotonic()
        try:
            common = (clip, made.sentences[0].text, started + 60 * args.minutes, log, Path(base))
            threads = [
                threading.Thread(target=visit, args=(address, number, *common)) for number in range(args.clients)
            ]
            watcher = threading.Thread(target=watch, args=(server.pid, started, ended, log))
            for thread in (*threads, watcher):
                thread.start()
            for thread in threads:
                thread.join()
            ended.set()
            watcher.join()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        figures = report(log, sum(1 for _ in place.rglob("glus-app-*")))
    print(json.dumps({"clients": args.clients, "minutes": args.minutes, **figures}))
    return int(bool(log.failures))


if __name__ == "__main__":
    sys.exit(main())
