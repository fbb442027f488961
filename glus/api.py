"""`GLUS`: load a checkpoint, segment a video by sentences. The public surface; the work is done elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from glus.config import Behaviour, InferenceConfig, ModelConfig, Sam2Config
from glus.errors import InputError
from glus.inference.budget import MemoryBudget
from glus.inference.engine import segment_clip
from glus.inference.live import stream
from glus.inference.queries import Query
from glus.inference.result import SegmentResult
from glus.inference.streams import ContextPolicy
from glus.io import disk_errors
from glus.modeling import fingerprint, pretrained
from glus.modeling.glus import GLUSModel
from glus.text.prompts import check_expression
from glus.text.tokenizer import GlusTokenizer
from glus.video import open_frames

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StreamStep:
    """One frame of `GLUS.stream`.

    Attributes:
        frame: index in the clip; `name` its name.
        masks: bool tensor (expressions, height, width).
        scores: float tensor (expressions,), predicted IoU, 0..1.
        failed: bool tensor (expressions,); the model did not answer [SEG].
    """

    frame: int
    name: str
    masks: torch.Tensor
    scores: torch.Tensor
    failed: torch.Tensor


class GLUS:
    """A GLUS model with its tokenizer.

    Attributes:
        model: the `GLUSModel` (weights and primitives).
        tokenizer: the checkpoint's tokenizer.
    """

    def __init__(
        self, model: GLUSModel, tokenizer: GlusTokenizer, recorded: fingerprint.Fingerprint | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._fingerprint = recorded

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        compat: str | None = None,
        behaviour: Behaviour | None = None,
        vision_tower: str | Path | None = None,
        sam2_checkpoint: str | Path | None = None,
        sam2: Sam2Config | None = None,
        image_size: int | None = None,
        bits: int | None = None,
        attention: str = "sdpa",
        compiled: bool = False,
    ) -> GLUS:
        """Load a checkpoint, strictly: every key fits or is dropped on purpose, or it is an error.

        Args:
            source: a folder (ours, a released GLUS directory, or LISA-7B-v1) or a hub id.
            dtype: fp32, bf16 or fp16 (or a torch dtype); default bf16 on CUDA, fp32 on the CPU.
            device: default CUDA if there is one.
            compat: "corrected" or "released" (`Behaviour.preset`); default what the checkpoint says.
            behaviour: single switches instead of a preset.
            vision_tower: CLIP's folder or hub id, for checkpoints that do not hold it.
            sam2_checkpoint: `sam2_hiera_*.pt`, to be joined to LISA-7B-v1.
            sam2: SAM-2 sizes for released and LISA directories, which do not store them; default hiera-L.
            image_size: side of the SAM-2 input, 256 and up in multiples of 64; default the checkpoint's.
            bits: 8 or 4: the language model's weights in so many bits (needs bitsandbytes); for inference only.
            attention: of the language model: "sdpa", "eager" or "flash_attention_2" (needs flash-attn and a GPU).
            compiled: have torch compile the parts that are run most; takes a while when they first run.

        Raises:
            InputError: anything that cannot be loaded; the message names the file or key.
        """
        if compat is not None and behaviour is not None:
            raise InputError("give compat or behaviour, not both")
        place = choose_device(device)
        options = pretrained.LoadOptions(
            dtype=choose_dtype(dtype, place),
            device=place,
            behaviour=Behaviour.preset(compat) if compat is not None else behaviour,
            vision_tower=vision_tower,
            sam2_checkpoint=sam2_checkpoint,
            sam2=sam2,
            image_size=image_size,
            bits=bits,
            attention=attention,
            compiled=compiled,
        )
        return cls(*pretrained.load_pretrained(source, options))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write our own format with a fresh fingerprint; loading it back gives the same bits."""
        recorded = fingerprint.take_fingerprint(self.model, self.tokenizer)
        with disk_errors(folder):
            pretrained.save_pretrained(Path(folder), self.model, self.tokenizer, recorded)

    def self_check(self) -> fingerprint.CheckReport:
        """Run the small check forward and compare it with the checkpoint's fingerprint.

        Raises:
            InputError: the checkpoint carries none, or the numbers differ.
        """
        if self._fingerprint is None:
            raise InputError("this checkpoint carries no fingerprint for these sizes; nothing to compare with")
        return fingerprint.compare(self.model, self.tokenizer, self._fingerprint)

    def segment(
        self,
        source: Any,
        expressions: str | Sequence[str],
        *,
        key_frames: Sequence[int] | None = None,
        config: InferenceConfig | None = None,
        memory_budget: float | None = None,
        progress: bool | Callable[[int, int], object] = False,
    ) -> SegmentResult:
        """Segment a video by one or more sentences.

        Args:
            source: a video file, a folder of images, a list of image files, or a uint8 array (T, H, W, 3) RGB.
            expressions: what to segment, one mask per sentence.
            key_frames: per expression, the frame to start from (forward, then backward); default the first.
            config: numbers of context and query frames, memory stride; default the checkpoint's own.
            memory_budget: GiB to use beside the model, which sets how much is done at once; default by what is
                free. The masks are the same.
            progress: show a progress bar; or what to call after every frame with how many are done, of how many.
                What it raises ends the work.

        Raises:
            InputError: unreadable video, no frames, an unusable expression, a key frame outside the clip.
        """
        texts = _checked(expressions)
        frames = open_frames(source, progress is True)
        count = len(frames)
        keys = list(key_frames) if key_frames is not None else [0] * len(texts)
        whole = all(isinstance(key, int | np.integer) and not isinstance(key, bool) for key in keys)
        if len(keys) != len(texts) or not whole or any(not 0 <= key < count for key in keys):
            raise InputError(f"key_frames needs one index in 0..{count - 1} per expression, found {keys}")
        config = config or self.config.inference
        height, width = frames[0].shape[:2]
        masks = torch.zeros(len(texts), count, height, width, dtype=torch.bool)
        scores = torch.zeros(len(texts), count)
        failed = torch.zeros(len(texts), count, dtype=torch.bool)
        steps = sum(count + (key > 0) for key in keys)  # a key frame is decoded in both passes
        told = progress if callable(progress) else None
        with tqdm(total=steps, unit="frame", disable=told is not None or not progress) as bar:
            queries = [Query(text, int(key)) for text, key in zip(texts, keys, strict=True)]
            results = segment_clip(
                self.model, self.tokenizer, frames, queries, config, budget=_budget(memory_budget)
            )
            for done, (row, result) in enumerate(results, start=1):
                bar.update()
                if told:
                    told(done, steps)
                masks[row, result.frame] = torch.from_numpy(result.mask)
                scores[row, result.frame] = result.score
                failed[row, result.frame] = result.failed
        return SegmentResult(frames, texts, masks, scores, failed)

    def stream(
        self,
        source: Any,
        expressions: str | Sequence[str],
        *,
        config: InferenceConfig | None = None,
        context: ContextPolicy | Sequence[Any] = "reservoir",
        lookahead: int = 1,
        memory_budget: float | None = None,
    ) -> Iterator[StreamStep]:
        """Segment frame by frame; what is kept does not grow with the length of the video.

        Args:
            source: as for `segment`, or an iterator of frames, uint8 (H, W, 3) RGB, that may never end. Of a video
                the context frames are read first, and the masks are those of `segment`; an iterator is read once.
            context: of an iterator, where the context frames come from: a running sample of what was seen
                (`reservoir`), the `first` frames, or the frames given here (see `glus.inference.streams`).
            lookahead: of an iterator, how many frames are read before the first of them is answered.
            config, memory_budget: as for `segment`.
        """
        texts = _checked(expressions)
        live = isinstance(source, Iterator)
        frames = source if live else open_frames(source)
        steps = stream(
            self.model,
            self.tokenizer,
            frames,
            texts,
            config or self.config.inference,
            context=context,
            lookahead=lookahead,
            budget=_budget(memory_budget),
        )
        for index, results in enumerate(steps):
            yield StreamStep(
                index,
                f"{index:05d}" if live else frames.names[index],
                torch.from_numpy(np.stack([r.mask for r in results])),
                torch.tensor([r.score for r in results]),
                torch.tensor([r.failed for r in results]),
            )


def _budget(gib: float | None) -> MemoryBudget | None:
    return MemoryBudget.of_gib(gib) if gib is not None else None


def choose_device(name: torch.device | str | None) -> torch.device:
    """The one named, else CUDA if there is one; raises an `InputError` for what is not there."""
    try:
        place = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}: {str(error).splitlines()[0]}") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {place} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    return place


def choose_dtype(name: torch.dtype | str | None, place: torch.device) -> torch.dtype:
    """The one named, else bf16 on CUDA and fp32 elsewhere; raises an `InputError` for one it does not know."""
    if name is None:
        return torch.bfloat16 if place.type == "cuda" else torch.float32
    dtype = DTYPES.get(name) if isinstance(name, str) else name
    if dtype is None or dtype not in DTYPES.values():
        raise InputError(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)}")
    return dtype


def _checked(expressions: str | Sequence[str]) -> list[str]:
    texts = [expressions] if isinstance(expressions, str) else list(expressions)
    if not texts:
        raise InputError("no expression given")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise InputError(f"expression {number} must be text, found {text!r:.80}")
        check_expression(text, f"expression {number}")
    return texts
