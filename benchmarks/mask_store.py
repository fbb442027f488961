"""The mask store against `json.load` on a made-up mask file of MeViS shape, on one core.

The original loads the whole file for every expression (reference glus.md D5). The store walks it once (build),
after which every process opens it (reopen). `ratio` compares an expression of 80 frames: load and decode against
reopen and decode. Each measurement runs in a process of its own; time is its CPU time; `peak` counts the pages of
the file that are mapped, which processes share, `private` does not. Both sides decode the same random masks, which
must be equal. The file lies in a temporary folder and is deleted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from glus.data.mask_store import INDEX_SUFFIX, MaskStore
from glus.masks import decode_rle, encode_rle

HEIGHT, WIDTH, FRAMES = 720, 1280, 80
Pick = tuple[str, int]


# --- the two sides --------------------------------------------------------------------------------------------


def digest(entries: list[Any]) -> list[int]:
    """Check sums of the decoded masks."""
    return [
        -1 if entry is None else zlib.crc32(np.packbits(decode_rle(entry, HEIGHT, WIDTH, "mask")).tobytes())
        for entry in entries
    ]


def plain(path: Path, picks: list[Pick]) -> dict[str, Any]:
    """`json.load`, then the masks."""
    start = time.process_time()
    with open(path, encoding="utf-8") as handle:
        content = json.load(handle)
    loaded, peak = time.process_time(), memory_mib("VmHWM")
    found = digest([content[anno][frame] for anno, frame in picks])
    return figures(start, loaded, peak, found)


def store(path: Path, picks: list[Pick]) -> dict[str, Any]:
    """The store, then the masks; the first time this includes the walk through the file."""
    start = time.process_time()
    masks = MaskStore(path)
    opened, peak = time.process_time(), memory_mib("VmHWM")
    found = digest([masks.track(anno)[frame] for anno, frame in picks])
    return figures(start, opened, peak, found)


def figures(start: float, opened: float, peak: float, found: list[int]) -> dict[str, Any]:
    seconds = {"open": opened - start, "masks": time.process_time() - opened}
    return {**seconds, "peak": peak, "private": memory_mib("RssAnon"), "found": found}


# --- data and measurement -------------------------------------------------------------------------------------


def write_masks(path: Path, megabytes: int, seed: int) -> int:
    """Tracks of ragged blobs, a fifth of the frames null; returns the number of annotations."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    texts = ["null"] * 60
    for _ in range(240):
        rough = cv2.resize(random.normal(size=(HEIGHT // 48, WIDTH // 48)).astype(np.float32), (WIDTH, HEIGHT))
        centre, size = random.uniform(0.2, 0.8, 2), random.uniform(0.08, 0.25)
        away = np.hypot(y / HEIGHT - centre[0], (x / WIDTH - centre[1]) * WIDTH / HEIGHT) / size
        texts.append(json.dumps(encode_rle(away + 0.2 * rough < 1)))
    written = count = 0
    with open(path, "w", encoding="ascii") as handle:
        while written < megabytes * 10**6:
            track = ", ".join(texts[i] for i in random.integers(len(texts), size=FRAMES))
            written += handle.write(f'{", " if count else "{"}"{count}": [{track}]')
            count += 1
        handle.write("}")
    return count


def memory_mib(name: str) -> float:
    """Memory of this process: `VmHWM` is the peak, mapped files included; `RssAnon` what is its own now."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


def measure(function: Callable[..., Any], path: Path, small: Path, picks: list[Pick], pipe: Any) -> None:
    function(small, [("0", 0)])  # compile, import
    imports = memory_mib("RssAnon")
    pipe.send({**function(path, picks), "imports": imports})


def run_apart(function: Callable[..., Any], path: Path, small: Path, picks: list[Pick]) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(function, path, small, picks, sender))
    process.start()
    sender.close()
    try:
        answer: dict[str, Any] = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} died") from None
    finally:
        process.join()
    return answer


def mask_store(megabytes: int, masks: int, seed: int = 0) -> dict[str, Any]:
    """Figures of the benchmark's last line."""
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "mask_dict.json", Path(folder) / "small.json"
        count = write_masks(path, megabytes, seed)
        write_masks(small, 1, seed)
        random = np.random.default_rng(seed)
        picks = [(str(random.integers(count)), int(random.integers(FRAMES))) for _ in range(masks)]
        original = run_apart(plain, path, small, picks)
        build = run_apart(store, path, small, picks)
        again = run_apart(store, path, small, picks)
        size, index = path.stat().st_size, path.with_name(path.name + INDEX_SUFFIX).stat().st_size
    slow, fast = (1e3 * side["masks"] / masks for side in (original, again))
    return {
        "benchmark": "mask_store",
        "ratio": round((1e3 * original["open"] + FRAMES * slow) / (1e3 * again["open"] + FRAMES * fast), 1),
        "ratio_first_time": round(original["open"] / build["open"], 1),
        "equal": original["found"] == build["found"] == again["found"],
        "annotations": count,
        "masks": count * FRAMES,
        "decoded": masks,
        "file_mb": round(size / 1e6, 1),
        "index_mb": round(index / 1e6, 2),
        "json_load_s": round(original["open"], 2),
        "build_s": round(build["open"], 2),
        "reopen_s": round(again["open"], 4),
        "original_ms_per_mask": round(slow, 3),
        "ms_per_mask": round(fast, 3),
        "original_peak_mib": round(original["peak"]),
        "build_peak_mib": round(build["peak"]),
        "peak_mib": round(again["peak"]),
        "original_private_mib": round(original["private"]),
        "private_mib": round(again["private"]),
        "imports_private_mib": round(again["imports"]),
        "device": "cpu, one core",
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="size of the file (default: 400)")
    parser.add_argument("--masks", type=int, default=2000, help="masks decoded (default: 2000)")
    parser.add_argument("--quick", action="store_true", help="100 megabytes, 500 masks")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up masks (default: 0)")
    args = parser.parse_args(argv)
    megabytes, masks = (100, 500) if args.quick else (args.megabytes, args.masks)
    print(json.dumps(mask_store(megabytes, masks, args.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
