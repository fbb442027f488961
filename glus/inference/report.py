"""A report on a finished run: one HTML file with frames, overlays and scores, and overlay videos beside it.

The page needs nothing but itself: pictures are embedded, there are no scripts, fonts or style sheets to load.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glus.data.datasets import load_records
from glus.data.records import Record
from glus.errors import InputError
from glus.inference.curves import curve
from glus.io import disk_errors, expect, field, read_json, write_bytes
from glus.masks import decode_rle, read_mask
from glus.overlay import caption_strip, captioned, colour_of, overlay
from glus.video import Frame, ImageFrames, video_writer

SHOWN_FRAMES = 4
THUMBNAIL_WIDTH = 256

Mask = npt.NDArray[np.bool_]

_STYLE = """
:root { color-scheme: light dark; --line: #8883; --soft: #8882; --dim: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.dim { color: var(--dim); }
.facts { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0; }
.fact { background: var(--soft); border-radius: .6rem; padding: .5rem 1rem; }
.fact b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.exp { border-top: 1px solid var(--line); padding: .8rem 0 1rem; }
.line { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1.2rem; margin-bottom: .5rem; }
.text { font-weight: 600; flex: 1 1 20rem; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .5em; }
.score { font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: inline-block; width: 90px; height: .5em; border-radius: .25em; background: var(--line); }
.bar i { display: block; height: 100%; border-radius: inherit; background: currentColor; }
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .5rem; }
.strip figure { margin: 0; } .strip img { width: 100%; border-radius: .3rem; display: block; }
figcaption { font-size: .8rem; color: var(--dim); }
"""


@dataclass(frozen=True)
class Sources:
    """Where the report takes its material from.

    Attributes:
        masks: folder of a run, `<video>/<exp_id>/<frame>.png`.
        scores: the evaluator's JSON (`--json`), or nothing.
        truth: mask dictionary `{anno_id: [run-length code or null]}`, or nothing.
        summary: the run's `summary.json`, or nothing.
        starts: key frames with all scores (`kfs.key_frames`), or nothing.
    """

    masks: Path
    scores: Mapping[str, Any]
    truth: Mapping[str, Any]
    summary: Mapping[str, Any]
    starts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def by_expression(self) -> dict[tuple[str, str], dict[str, Any]]:
        rows = self.scores.get("expressions", [])
        return {(str(row["video"]), str(row["exp_id"])): row for row in rows}

    def predicted(self, record: Record, index: int, shape: tuple[int, ...]) -> Mask:
        """Mask of a frame, which must be there and of the frame's size."""
        path = self.masks / record.video / record.exp_id / f"{record.frames[index]}.png"
        mask: Mask = read_mask(path)
        if mask.shape != shape[:2]:
            raise InputError(f"{path} is {mask.shape[1]}x{mask.shape[0]}, its frame {shape[1]}x{shape[0]}")
        return mask

    def true(self, record: Record, index: int, shape: tuple[int, ...]) -> Mask | None:
        """Union of the true masks of the expression's objects, if known."""
        if not record.anno_ids or any(key not in self.truth for key in record.anno_ids):
            return None
        height, width = shape[:2]
        masks = []
        for key in record.anno_ids:
            codes = expect(self.truth[key], list, "mask dictionary", key)
            if len(codes) != len(record):
                raise InputError(f"mask dictionary: {key} has {len(codes)} masks for {len(record)} frames")
            masks.append(decode_rle(codes[index], height, width, f"mask dictionary, frame {index} of {key}"))
        return np.asarray(np.logical_or.reduce(masks))


def draw(frame: Frame, mask: Mask, truth: Mask | None, colour: tuple[int, int, int]) -> Frame:
    """The frame with the predicted mask tinted and the true one as a white outline."""
    picture = overlay(frame, mask, [colour])
    if truth is not None:
        contours, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, (255, 255, 255), 1)
    return picture


def thumbnail(picture: Frame) -> str:
    """A picture as the `src` of an `<img>`: a small JPEG inside the page."""
    height, width = picture.shape[:2]
    size = (THUMBNAIL_WIDTH, max(1, round(height * THUMBNAIL_WIDTH / width)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def score_line(row: Mapping[str, Any] | None) -> str:
    """J, F and J&F of an expression with a bar and, if the frames' values are there, a curve of J."""
    if row is None:
        return '<span class="dim">not scored</span>'
    parts = [f'<span class="score">{name} {100 * row[name]:.1f}</span>' for name in ("J", "F")]
    both = row["J&F"]
    parts.append(
        f'<span class="score"><b>J&amp;F {100 * both:.1f}</b> '
        f'<span class="bar"><i style="width:{100 * both:.0f}%"></i></span></span>'
    )
    if "per_frame" in row:
        parts.append(curve(row["per_frame"]["J"], "J"))
    return "".join(parts)


def key_frame_line(record: Record, starts: Mapping[str, Any]) -> tuple[str, int | None]:
    """Where the run was to start and the selector's scores over the frames, and the index of that frame."""
    entry = starts.get(record.video, {}).get(record.exp_id)
    if entry is None:
        return "", None
    where = f"key frames: {record.video}.{record.exp_id}"
    scores = field(entry, "scores", dict, where, "entry")
    if set(scores) != set(record.frames) or (key := entry.get("key_frame")) not in scores:
        raise InputError(f"{where} has scores of other frames than the video's; score the set again")
    values = [float(expect(scores[name], (int, float), where, f"scores.{name}")) for name in record.frames]
    index = record.frames.index(key)
    line = (
        f'<span class="score">key frame {escape(key)}</span>{curve(values, "key-frame score", index, unit=False)}'
    )
    return line, index


def expression_part(record: Record, number: int, sources: Sources, out: Path) -> str:
    """HTML of one expression; writes its overlay video, `<out>/videos/<video>/<exp_id>.mp4`."""
    frames = ImageFrames([record.frame_path(i) for i in range(len(record))], record.frames)
    colour = colour_of(number)
    strip = caption_strip(frames[0].shape[1], [record.text], [colour])
    line, key = key_frame_line(record, sources.starts)
    shown = set(np.linspace(0, len(frames) - 1, SHOWN_FRAMES, dtype=int).tolist())
    if key is not None:
        shown.add(key)
    name = f"videos/{record.video}/{record.exp_id}.mp4"
    with disk_errors(out):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
    figures = []
    with video_writer(out / name, frames.fps) as writer:
        for i in range(len(frames)):
            frame = frames[i]
            mask = sources.predicted(record, i, frame.shape)
            picture = draw(frame, mask, sources.true(record, i, frame.shape), colour)
            writer.write(captioned(picture, strip))
            if i in shown:
                label = escape(record.frames[i])
                figures.append(
                    f'<figure><img src="{thumbnail(picture)}" alt="frame {label}">'
                    f"<figcaption>{label}{', key frame' if i == key else ''}</figcaption></figure>"
                )
    row = sources.by_expression.get((record.video, record.exp_id))
    return (
        f'<div class="exp"><div class="line"><span class="text">'
        f'<span class="swatch" style="background:rgb{colour}"></span>{escape(record.text)}</span>'
        f'{score_line(row)}{line}<a href="{quote(name)}">video</a></div>'
        f'<div class="strip">{"".join(figures)}</div></div>'
    )


def head_part(title: str, sources: Sources, count: int) -> str:
    """HTML of the heading: totals of the evaluation and of the run."""
    facts: list[tuple[str, str]] = [
        (name, f"{100 * sources.scores[name]:.2f}") for name in ("J&F", "J", "F") if name in sources.scores
    ]
    facts.append(("expressions", str(count)))
    run = sources.summary
    if run:
        facts += [("frames", str(run["frames"])), ("frames without [SEG]", str(run["failures"]))]
        if run["frames_this_run"]:
            facts.append(("frames per second", f"{run['frames_per_second']:.1f}"))
    boxes = "".join(f'<div class="fact"><b>{escape(value)}</b>{escape(name)}</div>' for name, value in facts)
    legend = (
        "Tint: the model's mask. White outline: the true mask." if sources.truth else "Tint: the model's mask."
    )
    return f'<h1>{escape(title)}</h1><p class="dim">{legend}</p><div class="facts">{boxes}</div>'


def write_report(title: str, records: Sequence[Record], sources: Sources, out: Path) -> Path:
    """Write `<out>/report.html` and `<out>/videos/<video>/<exp_id>.mp4`.

    Raises:
        InputError: a mask or frame is missing or of another size, or `out` cannot be written.
    """
    if not records:
        raise InputError("nothing to report: no expressions")
    by_video: dict[str, list[Record]] = {}
    for record in records:
        by_video.setdefault(record.video, []).append(record)
    parts = [head_part(title, sources, len(records))]
    with tqdm(total=len(records), unit="expression", desc="report", disable=None) as bar:
        for video, group in by_video.items():
            parts.append(f'<h2>{escape(video)} <span class="dim">{len(group[0])} frames</span></h2>')
            for number, record in enumerate(group):
                parts.append(expression_part(record, number, sources, out))
                bar.update()
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    path = out / "report.html"
    with disk_errors(path):
        write_bytes(path, page.encode())
    return path


def read_sources(
    masks: Path, eval_json: Path | None, mask_path: Path | None, key_frames: Path | None = None
) -> Sources:
    """Read the files a report draws on, checked as far as it uses them."""
    scores: dict[str, Any] = {}
    if eval_json is not None:
        scores = expect(read_json(eval_json, "evaluation result"), dict, eval_json, "(top level)")
        for name in ("J", "F", "J&F"):
            field(scores, name, (float, int), eval_json, "(top level)")
        for i, row in enumerate(field(scores, "expressions", list, eval_json, "(top level)")):
            for name, kind in (("video", str), ("exp_id", str), ("J", float), ("F", float), ("J&F", float)):
                field(row, name, kind, eval_json, f"expressions[{i}]")
            if "per_frame" in row:
                curves = field(row, "per_frame", dict, eval_json, f"expressions[{i}]")
                for value in field(curves, "J", list, eval_json, f"expressions[{i}].per_frame"):
                    expect(value, float, eval_json, f"expressions[{i}].per_frame.J")
    truth: dict[str, Any] = {}
    if mask_path is not None:
        truth = expect(read_json(mask_path, "mask dictionary"), dict, mask_path, "(top level)")
    summary_path = masks / "summary.json"
    summary = read_json(summary_path, "summary of the run") if summary_path.exists() else {}
    for name in ("frames", "failures", "frames_this_run", "frames_per_second") if summary else ():
        field(summary, name, (int, float), summary_path, "(top level)")
    starts: dict[str, Any] = {}
    if key_frames is not None:
        starts = expect(read_json(key_frames, "key frames"), dict, key_frames, "(top level)")
        for video, entries in starts.items():
            for exp_id, entry in expect(entries, dict, key_frames, video).items():
                expect(entry, dict, key_frames, f"{video}.{exp_id}")
    return Sources(masks, scores, truth, summary, starts)


def main(argv: Sequence[str]) -> int:
    """`python -m glus report`."""
    p = argparse.ArgumentParser(
        prog="python -m glus report", description="Write an HTML report on a finished run."
    )
    p.add_argument("--dataset_dir", default="data", help="folder that holds mevis, Refer-YouTube-VOS, ...")
    p.add_argument("--val_set", default="mevis")
    p.add_argument("--set_name", default="valid_u")
    p.add_argument("--vis_save_path", type=Path, required=True, help="masks of the run")
    p.add_argument("--eval_json", type=Path, help="what the evaluator wrote with --json (and --per_frame)")
    p.add_argument("--mask_path", type=Path, help="mask_dict.json, to outline the true masks")
    p.add_argument("--key_frames", type=Path, help="key_frame_scores.json of a selector, to show its scores")
    p.add_argument("--out", type=Path, required=True, help="folder for report.html and videos/")
    p.add_argument("--title", default="GLUS report")
    p.add_argument("--limit", type=int, help="only the first N expressions")
    args = p.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit must be at least 1, found {args.limit}")
    records = load_records(args.val_set, args.dataset_dir, args.set_name)[: args.limit]
    sources = read_sources(args.vis_save_path, args.eval_json, args.mask_path, args.key_frames)
    path = write_report(args.title, records, sources, args.out)
    sys.stdout.write(f"report: {path}\n")
    return 0
