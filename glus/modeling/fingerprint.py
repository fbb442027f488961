"""A small forward whose numbers travel with a checkpoint, so that a wrong load is noticed.

The forward touches every part: tokenizer, CLIP, projector, LLaMA, [SEG] head, SAM-2 encoder, decoder, memory.
Its images are formulas, so nothing but the weights and the code decides the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glus.config import Behaviour
from glus.errors import InputError
from glus.io import expect, field
from glus.modeling.glus import GLUSModel
from glus.text.prompts import window_prompt
from glus.text.tokenizer import GlusTokenizer

EXPRESSION = "the red object that moves to the left"
CONTEXT = 2
SAMPLES = 16
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.35, "float16": 0.05}
"""Largest accepted deviation per dtype, in standard deviations of the recorded values."""
SMALLEST_SPREAD = {"iou": 0.1}
"""Floor of that standard deviation: a trained model's IoU predictions may all be near 1."""
# The fallback would make the memory, and so the second frame, hang on a threshold that a lower dtype may cross.
BEHAVIOUR = Behaviour(stability_fallback=False)


@dataclass(frozen=True)
class Fingerprint:
    """Recorded numbers of the check forward; the lists hold samples of two frames, one after the other.

    Attributes:
        dtype: what the forward was computed in when it was recorded.
        input_ids: token ids of the first window.
        embedding: the [SEG] embedding.
        logits: next-token logits.
        low_res: low-res logits of all four mask candidates.
        iou: predicted IoU of the candidates.
    """

    dtype: str
    input_ids: list[int]
    embedding: list[float]
    logits: list[float]
    low_res: list[float]
    iou: list[float]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_dict(raw: dict[str, Any], path: Path) -> Fingerprint:
        """Raises InputError when the recorded values are not a fingerprint."""
        names = {f.name for f in fields(Fingerprint)}
        if set(raw) != names:
            raise InputError(f"{path}: fingerprint has unknown or missing fields: {sorted(set(raw) ^ names)}")
        if field(raw, "dtype", str, path, "fingerprint") not in TOLERANCE:
            raise InputError(f"{path}: fingerprint.dtype {raw['dtype']!r} is not one of {', '.join(TOLERANCE)}")
        for name in sorted(names - {"dtype"}):
            kinds = int if name == "input_ids" else (int, float)
            for value in field(raw, name, list, path, "fingerprint"):
                expect(value, kinds, path, f"fingerprint.{name}")
        return Fingerprint(**raw)


@dataclass(frozen=True)
class CheckReport:
    """How far a loaded model is from its fingerprint.

    Attributes:
        deviations: largest deviation per recorded quantity, in standard deviations of its recorded values.
        tolerance: what is accepted.
    """

    deviations: dict[str, float]
    tolerance: float

    @property
    def worst(self) -> float:
        return max(self.deviations.values())


def _image(side: int, shift: float, device: torch.device) -> torch.Tensor:
    """(1, 3, side, side) smooth waves in about -1.7..1.7, the range of normalised pixels."""
    axis = torch.linspace(0, 6.0, side, device=device)
    rows, columns = axis[:, None], axis[None, :]
    waves = [
        torch.sin(rows * (1 + c) + shift) + 0.7 * torch.cos(columns * (2 - 0.5 * c) - shift) for c in range(3)
    ]
    return torch.stack(waves)[None]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a block: dropout would record noise. Each module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def take_fingerprint(model: GLUSModel, tokenizer: GlusTokenizer) -> Fingerprint:
    """Run the check forward: two frames, the second with the memory of the first.

    It always runs under the same behaviour, so that it compares weights, not switches.
    """
    with torch.inference_mode(), model.using(BEHAVIOUR), _evaluating(model):
        return _check_forward(model, tokenizer.stripping(BEHAVIOUR.strip_around_added_tokens))


def _check_forward(model: GLUSModel, tokenizer: GlusTokenizer) -> Fingerprint:
    vision, sam = model.config.vision, model.config.sam2
    device = model.device
    shifts = (0.3, 1.1, 2.0, 2.4)
    tokens = torch.cat([model.encode_clip(_image(vision.image_size, s, device)) for s in shifts])
    bank = model.new_bank(stride=3)
    samples: dict[str, list[float]] = {name: [] for name in ("embedding", "logits", "low_res", "iou")}
    first_ids: list[int] = []
    for position in range(2):
        prompt = window_prompt(EXPRESSION, position + 1, CONTEXT)
        ids = tokenizer.encode_with_images(prompt)
        first_ids = first_ids or ids
        readout = model.read_window([ids], tokens[: CONTEXT + position + 1])
        features = model.encode_frame(_image(sam.image_size, shifts[CONTEXT + position], device))
        output = model.segment_frame(features, readout.embedding, bank, position)
        model.remember(features, output, bank, position)
        samples["embedding"] += _sample(readout.embedding)
        samples["logits"] += [float(readout.logits[0, tokenizer.seg_id]), *_sample(readout.logits)]
        samples["low_res"] += _sample(output.candidates)
        samples["iou"] += _sample(output.candidate_iou)
    return Fingerprint(str(model.dtype).removeprefix("torch."), first_ids, **samples)


def _sample(values: torch.Tensor) -> list[float]:
    flat = values.float().cpu().flatten()
    spread = torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat)), dtype=torch.float64)
    return [float(v) for v in flat[spread.long()]]


def compare(model: GLUSModel, tokenizer: GlusTokenizer, recorded: Fingerprint) -> CheckReport:
    """Run the check forward and compare it with a recorded one.

    Raises:
        InputError: other token ids, or a deviation above the tolerance of the lower of the two dtypes.
    """
    now = take_fingerprint(model, tokenizer)
    if now.input_ids != recorded.input_ids:
        raise InputError("self-check failed: the tokenizer gives other ids than the checkpoint was saved with")
    deviations = {
        name: _deviation(getattr(now, name), getattr(recorded, name), SMALLEST_SPREAD.get(name, 1e-6))
        for name in ("embedding", "logits", "low_res", "iou")
    }
    report = CheckReport(deviations, max(TOLERANCE[now.dtype], TOLERANCE[recorded.dtype]))
    if not all(value <= report.tolerance for value in deviations.values()):  # a NaN must fail too
        shown = ", ".join(f"{name} off by {value:.2g}" for name, value in deviations.items())
        raise InputError(
            f"self-check failed: the loaded weights give other numbers than recorded ({shown} standard "
            f"deviations, allowed {report.tolerance:g}); the checkpoint is damaged or a library differs"
        )
    return report


def _deviation(now: list[float], recorded: list[float], smallest_spread: float) -> float:
    if len(now) != len(recorded):
        raise InputError("self-check failed: the recorded fingerprint has another length")
    was = torch.tensor(recorded)
    scale = was.std().clamp(min=smallest_spread)
    return float((torch.tensor(now) - was).abs().max() / scale)
