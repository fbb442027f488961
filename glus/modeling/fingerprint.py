"""A small forward whose numbers travel with a checkpoint, so that a wrong load is noticed.

The forward touches every part: tokenizer, CLIP, projector, LLaMA, [SEG] head, SAM-2 encoder, decoder, memory.
Its images are formulas, so nothing but the weights and the code decides the numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from glus.config import Behaviour
from glus.errors import InputError
from glus.modeling.glus import GLUSModel
from glus.text.prompts import window_prompt
from glus.text.tokenizer import GlusTokenizer

EXPRESSION = "the red object that moves to the left"
CONTEXT = 2
SAMPLES = 8
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.35, "float16": 0.05}
"""Largest accepted deviation per dtype, in standard deviations of the recorded values."""


@dataclass(frozen=True)
class Fingerprint:
    """Recorded numbers of the check forward.

    Attributes:
        dtype: what the forward was computed in when it was recorded.
        input_ids: token ids of the first window.
        embedding: strided sample of the [SEG] embedding, two frames one after the other.
        low_res: strided sample of the low-res logits, likewise.
    """

    dtype: str
    input_ids: list[int]
    embedding: list[float]
    low_res: list[float]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class CheckReport:
    """How far a loaded model is from its fingerprint, in standard deviations of the recorded values."""

    embedding_deviation: float
    low_res_deviation: float
    tolerance: float


def _image(side: int, shift: float, device: torch.device) -> torch.Tensor:
    """(1, 3, side, side) smooth waves in about -1.7..1.7, the range of normalised pixels."""
    axis = torch.linspace(0, 6.0, side, device=device)
    rows, columns = axis[:, None], axis[None, :]
    waves = [
        torch.sin(rows * (1 + c) + shift) + 0.7 * torch.cos(columns * (2 - 0.5 * c) - shift) for c in range(3)
    ]
    return torch.stack(waves)[None]


def take_fingerprint(model: GLUSModel, tokenizer: GlusTokenizer) -> Fingerprint:
    """Run the check forward: two frames, the second with the memory of the first.

    It always runs under the default behaviour, so that it compares weights, not switches.
    """
    with torch.inference_mode(), model.using(Behaviour()):
        return _check_forward(model, tokenizer)


def _check_forward(model: GLUSModel, tokenizer: GlusTokenizer) -> Fingerprint:
    vision, sam = model.config.vision, model.config.sam2
    device = model.device
    shifts = (0.3, 1.1, 2.0, 2.4)
    tokens = torch.cat([model.encode_clip(_image(vision.image_size, s, device)) for s in shifts])
    bank = model.new_bank(stride=3)
    embeddings, logits = [], []
    first_ids: list[int] = []
    for position in range(2):
        prompt = window_prompt(EXPRESSION, position + 1, CONTEXT)
        ids = tokenizer.encode_with_images(prompt)
        first_ids = first_ids or ids
        readout = model.read_window([ids], tokens[: CONTEXT + position + 1])
        features = model.encode_frame(_image(sam.image_size, shifts[CONTEXT + position], device))
        output = model.segment_frame(features, readout.embedding, bank, position)
        model.remember(features, output, bank, position)
        # Candidates, not the returned mask: which of them is returned may flip under a lower dtype.
        embeddings.append(_sample(readout.embedding))
        logits.append(_sample(output.candidates[:, 0]))
    dtype = str(model.dtype).removeprefix("torch.")
    return Fingerprint(dtype, first_ids, torch.cat(embeddings).tolist(), torch.cat(logits).tolist())


def _sample(values: torch.Tensor) -> torch.Tensor:
    flat = values.float().cpu().flatten()
    return flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]


def compare(model: GLUSModel, tokenizer: GlusTokenizer, recorded: Fingerprint) -> CheckReport:
    """Run the check forward and compare it with a recorded one.

    Raises:
        InputError: other token ids, or a deviation above the tolerance of the lower of the two dtypes.
    """
    now = take_fingerprint(model, tokenizer)
    if now.input_ids != recorded.input_ids:
        raise InputError("self-check failed: the tokenizer gives other ids than the checkpoint was saved with")
    tolerance = max(TOLERANCE[now.dtype], TOLERANCE[recorded.dtype])
    report = CheckReport(
        _deviation(now.embedding, recorded.embedding), _deviation(now.low_res, recorded.low_res), tolerance
    )
    worst = max(report.embedding_deviation, report.low_res_deviation)
    if not worst <= tolerance:
        raise InputError(
            f"self-check failed: the loaded weights give other numbers than recorded (embedding off by "
            f"{report.embedding_deviation:.2g}, low-res logits by {report.low_res_deviation:.2g} standard "
            f"deviations, allowed {tolerance:g}); the checkpoint is damaged or a library computes differently"
        )
    return report


def _deviation(now: list[float], recorded: list[float]) -> float:
    if len(now) != len(recorded):
        raise InputError("self-check failed: the recorded fingerprint has another length")
    was = torch.tensor(recorded)
    scale = was.std().clamp(min=1e-6)
    return float((torch.tensor(now) - was).abs().max() / scale)
