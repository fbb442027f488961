"""What the page says, as HTML. Whatever comes from a visitor is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from glus.app.jobs import Job
from glus.app.results import KeyFrame, Outcome
from glus.app.uploads import Limits, Upload
from glus.overlay import colour_of

STYLE = """
.glus-note { padding: 0.6em 0.9em; border-left: 0.35em solid #1d4ed8; background: #eff6ff; color: #172554; }
.glus-alert { border-color: #b91c1c; background: #fef2f2; color: #450a0a; }
.glus-note progress { width: 100%; height: 0.9em; accent-color: #1d4ed8; }
.glus-legend { list-style: none; margin: 0; padding: 0; }
.glus-legend li { display: flex; gap: 0.6em; align-items: baseline; overflow-wrap: anywhere; margin: 0.2em 0; }
.glus-swatch { flex: none; width: 1em; height: 1em; border: 1px solid #475569; border-radius: 0.15em; }
:focus-visible { outline: 3px solid #1d4ed8 !important; outline-offset: 2px; }
"""


def hex_colour(index: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour_of(index))


def label(index: int, sentence: str, longest: int = 40) -> str:
    """What a sentence is called where there is little room; not HTML."""
    return f"{index + 1}. {sentence if len(sentence) <= longest else sentence[: longest - 1] + '…'}"


def note(text: str) -> str:
    return f'<div class="glus-note" role="status">{escape(text)}</div>'


def alert(text: str) -> str:
    return f'<div class="glus-note glus-alert" role="alert">{escape(text[:1].upper() + text[1:])}.</div>'


def limits_text(limits: Limits) -> str:
    return (
        f"Up to {limits.megabytes} MB, {limits.frames} frames, {limits.side} pixels on the longer side; "
        f"{limits.sentences} sentences of {limits.letters} letters."
    )


def clip_text(upload: Upload) -> str:
    return note(f"{upload.name}: {upload.frames} frames of {upload.width}x{upload.height}.")


def progress(job: Job, before: int) -> str:
    """How a job that has not ended stands."""
    if job.state == "waiting":
        return note(f"Waiting; {before} job{'s' * (before != 1)} before yours.")
    total = max(job.total, 1)
    text = f"{job.doing[:1].upper()}{job.doing[1:]}: {job.done} of {total}"
    bar = f'<progress value="{job.done}" max="{total}" aria-label="{escape(text)}"></progress>'
    return f'<div class="glus-note" role="status">{escape(text)}{bar}</div>'


def ending(job: Job) -> str:
    """How a job has ended."""
    if job.state == "failed":
        return alert(job.message)
    if job.state == "stopped" or job.outcome is None:
        return note("Cancelled.")
    blank = sum(job.outcome.failures)
    frames = len(job.outcome.pictures) * len(job.outcome.sentences)
    return note(
        "Done." + (f" {blank} of {frames} masks are blank: the model found nothing to mark." if blank else "")
    )


def legend(sentences: Sequence[str], key_frames: Sequence[KeyFrame] | None) -> str:
    """One colour per sentence, and its key frame."""
    rows = []
    for index, sentence in enumerate(sentences):
        text = escape(sentence)
        if key_frames is not None:
            key = key_frames[index]
            text += f" <strong>(key frame {key.index}, score {key.scores[key.index]:.2f})</strong>"
        swatch = f'<span class="glus-swatch" style="background:{hex_colour(index)}"></span>'
        rows.append(f"<li>{swatch}<span>{text}</span></li>")
    return f'<ul class="glus-legend" aria-label="Colours of the sentences">{"".join(rows)}</ul>'


def legend_of(outcome: Outcome) -> str:
    return legend(outcome.sentences, outcome.key_frames)
