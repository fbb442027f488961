"""The page itself, in gradio: what there is to see, and what each part of it asks of the `Workbench`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas
from gradio import processing_utils
from starlette.middleware import Middleware

from glus.app import words
from glus.app.clips import BundledClip
from glus.app.guard import LARGEST_MESSAGE, Guard
from glus.app.jobs import Workbench
from glus.app.results import Outcome, Settings
from glus.config import InferenceConfig
from glus.errors import InputError

POLL_SECONDS = 0.25
WAITING_EVENTS = 64  # of any kind, in gradio's own queue
UPLOADS_AT_ONCE = 2  # each decodes a video

Update = dict[Any, Any]


class Page:
    """The page; `blocks` is what gradio serves.

    Args:
        workbench: does the work; gradio's files are put below its `root`, and only from there are files served.
        clips: what can be picked instead of an upload.
        changes: fields of `InferenceConfig` that hold unless a visitor says otherwise; else the model's own.
    """

    def __init__(
        self, workbench: Workbench, clips: Mapping[str, BundledClip], changes: Mapping[str, Any] | None = None
    ) -> None:
        self.workbench = workbench
        self.changes = dict(changes or {})
        self.clips = dict(clips)
        # components read these when they are made
        os.environ["GRADIO_TEMP_DIR"] = str(workbench.root)
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(workbench.root / "examples")
        with gr.Blocks(title="GLUS", analytics_enabled=False) as self.blocks:
            gr.Markdown("# GLUS\nA video and sentences in, a mask for each sentence in every frame out.")
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self._inputs(InferenceConfig(**self.changes))
                with gr.Column(scale=3, min_width=320):
                    self._outputs()
            self._events()
        self.blocks.queue(max_size=WAITING_EVENTS, default_concurrency_limit=None, api_open=False)

    def _inputs(self, defaults: InferenceConfig) -> None:
        limits, models = self.workbench.limits, self.workbench.models
        self.drop = gr.File(label="Your video, or images as its frames", file_count="multiple", height=140)
        self.clip = gr.Dropdown(
            list(self.clips), value=None, label="Or a clip that is here", visible=bool(self.clips)
        )
        self.clip_status = gr.HTML(words.note(words.limits_text(limits)))
        self.preview = gr.Image(
            label="First frame", visible=False, interactive=False, buttons=[], height=220, type="filepath"
        )
        self.sentences = gr.Textbox(
            label="Sentences, one per line", lines=3, max_lines=8, placeholder="the red circle that moves left"
        )
        self.model = gr.Dropdown(models.names, value=models.names[0], label="Model", interactive=True)
        with gr.Accordion("Options", open=False):
            self.learned = gr.Checkbox(True, label="As the model has learned it; untick for the four below")
            self.context = gr.Slider(0, 8, defaults.context_frames, step=1, label="Context frames")
            self.query = gr.Slider(1, 8, defaults.query_frames, step=1, label="Query frames in a window")
            self.stride = gr.Slider(1, 8, defaults.mem_stride, step=1, label="Stride of remembered frames")
            self.memory = gr.Checkbox(defaults.use_memory, label="Remember earlier frames")
            self.fps = gr.Slider(0, 30, 0, step=1, label="Frames per second at most (0: all)")
            self.side = gr.Slider(0, limits.side, 0, step=16, label="Longer side at most, in pixels (0: as it is)")
            self.alpha = gr.Slider(0.1, 0.9, 0.45, step=0.05, label="Opacity of the masks")
            self.key_frames = gr.Checkbox(
                models.has_selector, label="Start from key frames", visible=models.has_selector
            )
        with gr.Row():
            self.start = gr.Button("Segment", variant="primary", elem_id="segment")
            self.cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")

    def _outputs(self) -> None:
        self.status = gr.HTML(words.note("Pick a video and write a sentence."), elem_id="status")
        with gr.Column(visible=False, elem_id="results") as self.results:
            self.legend = gr.HTML()
            self.video = gr.Video(label="Overlay video", interactive=False, buttons=[], height=360)
            with gr.Row():
                self.files = [
                    gr.DownloadButton(text, elem_id=name, size="sm")
                    for name, text in (
                        ("get-video", "Video (mp4)"),
                        ("get-masks", "Masks (PNG, zip)"),
                        ("get-codes", "Masks (RLE, JSON)"),
                    )
                ]
            self.frame = gr.Slider(0, 1, 0, step=1, label="Frame", elem_id="frame")
            self.picture = gr.Image(label="Masks", interactive=False, buttons=[], type="filepath", height=320)
            self.scores = _plot("Score of each mask, as the model expects it", "score")
            self.key_pictures = gr.Gallery(label="Key frames", visible=False, columns=3, height=220)
            self.key_scores = _plot("Key-frame score of each frame", "score", visible=False)

    def _events(self) -> None:
        clip = [self.clip_status, self.preview, self.drop, self.sentences]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        taken = self.drop.upload(
            self.take,
            [self.drop],
            clip,
            api_name="upload",
            concurrency_limit=UPLOADS_AT_ONCE,
            show_progress="minimal",
        )
        self.clip.input(self.pick, [self.clip], clip, concurrency_limit=UPLOADS_AT_ONCE, **private)
        taken.then(lambda: None, None, self.clip, **private)
        options = [self.learned, self.context, self.query, self.stride, self.memory]
        options += [self.fps, self.side, self.alpha, self.key_frames]
        self.start.click(
            self.segment,
            [self.sentences, self.model, *options],
            [self.status, self.start, self.cancel, self.results, *self._shown()],
            api_name="segment",
            show_progress="hidden",
        )
        self.cancel.click(self.stop, None, [self.status], **private)
        self.frame.change(self.show, [self.frame], [self.picture], trigger_mode="always_last", **private)
        self.blocks.unload(self.leave)

    def _shown(self) -> list[Any]:
        """What results fill, in the order of `_results`."""
        keys = [self.key_pictures, self.key_scores]
        return [self.legend, self.video, *self.files, self.frame, self.picture, self.scores, *keys]

    def take(self, sent: list[str] | None, request: gr.Request) -> Update:
        """An upload has come. The box is emptied: the copy that counts is the visitor's."""
        return {**self._taken([Path(path) for path in sent or []], request), self.drop: None}

    def pick(self, name: str | None, request: gr.Request) -> Update:
        """A clip that is here was chosen."""
        if name not in self.clips:
            return {self.clip_status: words.alert("there is no such clip here")}
        clip = self.clips[name]
        return {**self._taken([clip.path], request), self.sentences: clip.sentences}

    def _taken(self, sent: Sequence[Path], request: gr.Request) -> Update:
        try:
            upload = self.workbench.upload(_key(request), sent)
        except InputError as error:
            return {self.clip_status: words.alert(str(error))}
        preview = gr.Image(str(upload.preview), visible=True)
        return {self.clip_status: words.clip_text(upload), self.preview: preview}

    async def segment(
        self,
        text: str,
        model: str,
        learned: bool,
        context: int,
        query: int,
        stride: int,
        memory: bool,
        fps: float,
        side: float,
        alpha: float,
        key_frames: bool,
        request: gr.Request,
    ) -> AsyncIterator[Update]:
        """Queue a job and tell how it stands until it has ended."""
        try:
            names = ("context_frames", "query_frames", "mem_stride", "use_memory")
            walk = dict(zip(names, (int(context), int(query), int(stride), bool(memory)), strict=True))
            opacity = min(max(float(alpha), 0.0), 1.0)
            settings = Settings(
                model, self.changes if learned else walk, bool(key_frames), fps or None, int(side) or None, opacity
            )
            job = self.workbench.submit(_key(request), text, settings)
        except InputError as error:
            yield {self.status: words.alert(str(error))}
            return
        yield {
            self.start: gr.Button(interactive=False),
            self.cancel: gr.Button(interactive=True),
            self.results: gr.Column(visible=False),
        }
        said = ""
        while not job.ended:
            told = words.progress(job, self.workbench.before(job))
            if told != said:
                yield {self.status: told}
            said = told
            await asyncio.sleep(POLL_SECONDS)
        shown = self._results(job.outcome) if job.outcome is not None and job.state == "done" else {}
        yield {
            self.status: words.ending(job),
            self.start: gr.Button(interactive=True),
            self.cancel: gr.Button(interactive=False),
            **shown,
        }

    def _results(self, outcome: Outcome) -> Update:
        names = [words.label(index, sentence) for index, sentence in enumerate(outcome.sentences)]
        keys = outcome.key_frames
        values = [
            words.legend_of(outcome),
            str(outcome.video),
            *(str(path) for path in (outcome.video, outcome.masks, outcome.codes)),
            gr.Slider(maximum=max(1, len(outcome.pictures) - 1), value=0, visible=len(outcome.pictures) > 1),
            str(outcome.pictures[0]),
            _curves(names, outcome.scores),
            gr.Gallery(
                [(str(outcome.pictures[key.index]), name) for key, name in zip(keys or [], names, strict=False)],
                visible=keys is not None,
            ),
            _curves(names, [key.scores for key in keys]) if keys else gr.LinePlot(visible=False),
        ]
        return {self.results: gr.Column(visible=True), **dict(zip(self._shown(), values, strict=True))}

    def show(self, frame: int, request: gr.Request) -> str | None:
        """The picture of a frame."""
        job = self.workbench.visitor(_key(request)).job
        if job is None or job.outcome is None:
            return None
        pictures = job.outcome.pictures
        return str(pictures[min(max(int(frame), 0), len(pictures) - 1)])

    def stop(self, request: gr.Request) -> str:
        """The visitor does not want to wait any longer."""
        self.workbench.stop(_key(request))
        return words.note("Cancelling; the frame that is under way is finished first.")

    def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        self.workbench.leave(_key(request))

    def launch(self, host: str, port: int | None, auth: tuple[str, str] | None = None, block: bool = True) -> str:
        """Serve the page; returns its address once it is up, or when it has ended if `block`."""
        upload = self.workbench.limits.megabytes << 20
        # A message may name an address in the place of an uploaded file, which gradio would fetch, however large.
        processing_utils.async_ssrf_protected_download = _fetch_nothing
        _, address, _ = self.blocks.launch(
            server_name=host,
            server_port=port,
            auth=auth,
            prevent_thread_lock=not block,
            share=False,
            quiet=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            max_file_size=upload,
            app_kwargs={"middleware": [Middleware(Guard, largest_upload=upload + LARGEST_MESSAGE)]},
            state_session_capacity=WAITING_EVENTS * 4,
            theme=_theme(),
            css=words.STYLE,
        )
        return str(address)


def _key(request: gr.Request) -> str:
    """The session of a tab: random, made by the browser, and sent by it alone."""
    if not request.session_hash:
        raise InputError("this page needs a session")
    return request.session_hash


async def _fetch_nothing(url: str, cache_dir: str) -> str:
    raise gr.Error("files are taken from uploads only")


def _theme() -> gr.themes.Default:
    """Gradio's own, with its faint text dark enough to read (contrast 7:1)."""
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate")
    faint = (
        "body_text_color_subdued",
        "block_label_text_color",
        "block_title_text_color",
        "input_placeholder_color",
    )
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        **dict.fromkeys(faint, "*neutral_600"),
        **{f"{name}_dark": "*neutral_200" for name in faint},
    )


def _plot(title: str, value: str, visible: bool = True) -> gr.LinePlot:
    return gr.LinePlot(
        x="frame", y=value, color="sentence", title=title, show_label=False, height=220, visible=visible
    )


def _curves(names: Sequence[str], rows: Sequence[Sequence[float]]) -> gr.LinePlot:
    table = [
        (frame, value, name) for name, row in zip(names, rows, strict=True) for frame, value in enumerate(row)
    ]
    colours = {name: words.hex_colour(index) for index, name in enumerate(names)}
    return gr.LinePlot(
        pandas.DataFrame(table, columns=["frame", "score", "sentence"]), color_map=colours, visible=True
    )
