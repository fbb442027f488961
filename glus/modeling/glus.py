"""The GLUS model: its parts and the primitives an inference schedule or a training step composes.

No schedule lives here. One frame of one window is `encode_clip` -> `read_window` -> `encode_frame` ->
`segment_frame` -> `remember`; how often each runs, and for what batch, is the engine's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from glus.config import Behaviour, ModelConfig
from glus.modeling.assemble import Assembled, assemble
from glus.modeling.language import LanguageModel
from glus.modeling.mask_decoder import FrameFeatures, MaskOutput, Sam2Path
from glus.modeling.memory import MemoryBank, MemoryEntry
from glus.modeling.multimodal import MultimodalModel
from glus.modeling.vision import VisionTower


@dataclass(frozen=True)
class Readout:
    """What the LLM says at the end of each window of a batch.

    Attributes:
        next_token: (B,) arg-max token ids; ties go to the lowest id (D53).
        embedding: (B, out_dim) projected state of the last position, the [SEG] prompt.
        hidden: (B, H) that state.
        logits: (B, vocabulary).
    """

    next_token: torch.Tensor
    embedding: torch.Tensor
    hidden: torch.Tensor
    logits: torch.Tensor


class GLUSModel(MultimodalModel):
    """CLIP tower + LLaMA + [SEG] head + SAM-2 path, every size from the config."""

    def __init__(self, config: ModelConfig, seg_id: int) -> None:
        super().__init__()
        self.config = config
        self.seg_id = seg_id
        hidden, out = config.language.hidden_size, config.sam2.hidden_size
        self.vision = VisionTower(config.vision, hidden, config.behaviour.token_pooling)
        self.language = LanguageModel(config.language)
        self.seg_head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out))
        # sam2's constructors read values of tensors they make, which the meta device has none of.
        with torch.device("cpu"):
            self.sam = Sam2Path(config.sam2, config.behaviour)

    @property
    def dtype(self) -> torch.dtype:
        return self.seg_head[0].weight.dtype  # type: ignore[return-value]

    @contextmanager
    def using(self, behaviour: Behaviour) -> Iterator[None]:
        """Run under other switches for the length of a block; the weights are untouched."""
        before = self.config
        try:
            self._apply_behaviour(behaviour)
            yield
        finally:
            self._apply_behaviour(before.behaviour)

    def _apply_behaviour(self, behaviour: Behaviour) -> None:
        self.config = dataclasses.replace(self.config, behaviour=behaviour)
        self.vision.pooling = behaviour.token_pooling
        self.sam.behaviour = behaviour

    def assemble(
        self,
        rows: Sequence[Sequence[int]],
        image_tokens: torch.Tensor,
        labels: Sequence[Sequence[int]] | None = None,
    ) -> Assembled:
        """Splice; see `glus.modeling.assemble.assemble`."""
        return assemble(
            rows,
            image_tokens,
            self.language.embedding,
            self.seg_id,
            labels,
            self.config.language.max_positions,
        )

    def read_window(self, rows: Sequence[Sequence[int]], image_tokens: torch.Tensor) -> Readout:
        """Run the LLM over windows that end in the forced answer and read their last position.

        Args:
            rows: token ids of each window.
            image_tokens: (images of all windows, tokens_per_image, H).
        """
        batch = self.assemble(rows, image_tokens)
        states = self.states(batch)
        last = torch.tensor(batch.layout.lengths, device=states.device) - 1
        return self.readout(states[torch.arange(len(rows), device=states.device), last])

    def readout(self, hidden: torch.Tensor) -> Readout:
        """What the last states (B, H) of windows say."""
        logits = self.language.logits(hidden, self.config.behaviour.fp32_islands)
        return Readout(lowest_argmax(logits), self.seg_head(hidden), hidden, logits)

    def accepts(self, readout: Readout) -> torch.Tensor:
        """(B,) bool: the window's answer counts as a [SEG] (D10, D53)."""
        if self.config.behaviour.seg_decision == "always":
            return torch.ones_like(readout.next_token, dtype=torch.bool)
        return readout.next_token == self.seg_id

    def encode_frame(self, pixels: torch.Tensor) -> FrameFeatures:
        """(N, 3, S, S) SAM pixels -> image features of the frames."""
        return self.sam.encode_frame(pixels.to(self.device))

    def segment_frame(
        self, features: FrameFeatures, seg_embedding: torch.Tensor, bank: MemoryBank | None, position: int
    ) -> MaskOutput:
        """Decode the masks of one frame, conditioned on what the bank remembers.

        Args:
            seg_embedding: (E, out_dim).
            bank: memories of the same E expressions, or None to decode every frame on its own.
            position: relative position of the frame in its pass.
        """
        memories = bank.recall(position) if bank is not None else []
        embed = self.sam.condition(features, memories, seg_embedding.shape[0])
        return self.sam.decode(features, embed, seg_embedding)

    def remember(
        self, features: FrameFeatures, output: MaskOutput, bank: MemoryBank | None, position: int
    ) -> MemoryEntry | None:
        """Encode a decoded frame into the bank; without a bank nothing is encoded."""
        if bank is None:
            return None
        entry = self.sam.encode_memory(features, output)
        bank.store(position, entry)
        return entry

    def new_bank(self, stride: int) -> MemoryBank:
        """An empty memory bank for one pass."""
        return MemoryBank(stride, self.config.sam2.memory_slots, self.config.behaviour.conditioning_frame)


def lowest_argmax(logits: torch.Tensor) -> torch.Tensor:
    """Index of the largest entry of the last dimension, the lowest one on ties (torch promises no order)."""
    top = logits.max(dim=-1, keepdim=True).values
    indices = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(logits == top, indices, logits.shape[-1]).min(dim=-1).values
