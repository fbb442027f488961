"""The selector's model: GLUS's vision tower and language model, token merging between them, a score at the end.

Nothing is generated: the answer is forced, the state before `[SCORE]` becomes the score (reference kfs.md, 2.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from glus.config import LanguageConfig, VisionConfig
from glus.data.transforms import ClipView
from glus.errors import InputError
from glus.modeling.assemble import Assembled, assemble, upload
from glus.modeling.keys import LLAMA_AND_PROJECTOR, KeyTable
from glus.modeling.language import LanguageModel
from glus.modeling.multimodal import MultimodalModel
from glus.modeling.vision import VisionTower
from kfs.frames import MAX_IMAGES
from kfs.merging import MergingConfig, cluster_count, merge_frames

CHAT_UNIVI = KeyTable("Chat-UniVi", (*LLAMA_AND_PROJECTOR, ("model.vision_tower.**", None)))
"""What training starts from (3.1). Its tower, if it has one, is CLIP's own, which is loaded from CLIP."""

RELEASED = KeyTable(
    "KFS",
    (
        *LLAMA_AND_PROJECTOR,
        ("model.text_hidden_fcs.0.*.*", "score_head.*.*"),
        ("model.vision_tower.vision_tower.vision_model.**", "vision.tower.**"),
    ),
)
"""A directory of the original (3.3) and, with the last line, its training checkpoints without peft's prefix."""


@dataclass(frozen=True)
class SelectorConfig:
    """All sizes of a selector, and what CLIP sees of a frame (`glus.data.transforms.clip_pixels`).

    The defaults are those of the original 7B model. `max_images` is how many a prompt has when scoring.
    """

    language: LanguageConfig = field(
        default_factory=lambda: LanguageConfig(vocab_size=32001, max_positions=4096, rms_norm_eps=1e-5)
    )
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(pool=1))
    merging: MergingConfig = field(default_factory=MergingConfig)
    out_dim: int = 256
    clip_view: ClipView = "centre"
    max_images: int = MAX_IMAGES

    def __post_init__(self) -> None:
        counts = [self.vision.tokens_per_image * self.vision.pool]
        for ratio in self.merging.spatial:
            counts.append(cluster_count(ratio, counts[-1]))
            if counts[-1] > counts[-2]:
                raise InputError(f"merging.spatial {ratio} asks for more tokens than the {counts[-2]} there are")


def make_score_head(hidden: int, out_dim: int) -> nn.Sequential:
    """The three layers between a state and a score, newly initialised (2.5)."""
    return nn.Sequential(
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out_dim), nn.ReLU(), nn.Linear(out_dim, 1)
    )


class MergingTower(VisionTower):
    """CLIP and the projector, with token merging in the place of GLUS's averages; `vision.pool` is not used."""

    def __init__(self, config: VisionConfig, merging: MergingConfig, llm_dim: int) -> None:
        super().__init__(config, llm_dim)
        self.merging = merging

    def pool(self, patches: torch.Tensor) -> torch.Tensor:
        """(B, P, C) -> (B, merging.tokens_per_image, C); in fp32 under autocast, too."""
        with torch.autocast(patches.device.type, enabled=False):
            return merge_frames(patches, self.merging)


class SelectorModel(MultimodalModel):
    """Frames and a prompt to the score of the target frame."""

    def __init__(self, config: SelectorConfig, score_id: int) -> None:
        super().__init__()
        self.config = config
        self.score_id = score_id
        hidden = config.language.hidden_size
        self.vision = MergingTower(config.vision, config.merging, hidden)
        self.language = LanguageModel(config.language)
        self.score_head = make_score_head(hidden, config.out_dim)

    def assemble(
        self,
        rows: Sequence[Sequence[int]],
        image_tokens: torch.Tensor,
        labels: Sequence[Sequence[int]] | None = None,
    ) -> Assembled:
        """Splice conversations and the tokens of all their images, in order.

        Raises:
            ValueError: see `glus.modeling.assemble.assemble`; also a row without exactly one `[SCORE]`.
        """
        limit = self.config.language.max_positions
        batch = assemble(rows, image_tokens, self.language.embedding, self.score_id, labels, limit)
        if any(count != 1 for count in batch.layout.seg_counts):
            raise ValueError(f"every conversation needs one [SCORE], found {batch.layout.seg_counts}")
        return batch

    def score_states(self, states: torch.Tensor, batch: Assembled) -> torch.Tensor:
        """(B, L, H) -> (B, H), the states that predict `[SCORE]`."""
        layout = batch.layout
        return states[upload(layout.seg_rows, states.device), upload(layout.seg_columns, states.device)]

    def score_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, H) -> (B,) fp32 scores; the head computes in fp32, as bf16's steps make ties of scores near 1."""
        with torch.autocast(hidden.device.type, enabled=False):
            weights = {name: value.float() for name, value in self.score_head.named_parameters()}
            value: torch.Tensor = torch.func.functional_call(self.score_head, weights, (hidden.float(),))
        return value[:, 0]

    def score(self, rows: Sequence[Sequence[int]], image_tokens: torch.Tensor) -> torch.Tensor:
        """(B,) fp32 scores of conversations; arguments as in `assemble`."""
        batch = self.assemble(rows, image_tokens)
        return self.score_of(self.score_states(self.states(batch), batch))
