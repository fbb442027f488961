"""The SAM-2 path: frame features, prompting by a [SEG] embedding, decoding, memory encoding.

Modules come from the package `sam2`; their names here are those of SAM-2 checkpoints, so `sam2_hiera_*.pt`
loads key by key. What GLUS does with them (sections 1.7 to 1.10 of reference glus.md) is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam.transformer import RoPEAttention, TwoWayTransformer
from sam2.modeling.sam2_utils import MLP
from torch import nn
from torch.func import functional_call

from glus.config import Behaviour, Sam2Config
from glus.modeling.freezing import graph_if_trained
from glus.modeling.memory import MemoryEntry, Recall

STABILITY_DELTA = 0.05
STABILITY_THRESHOLD = 0.98
MEMORY_MASK_SCALE, MEMORY_MASK_BIAS = 20.0, -10.0
ABSENT_LOGIT = -1024.0
RELEASED_GAMMA = 1e-6


@dataclass(frozen=True)
class FrameFeatures:
    """Image features of a frame, shared by all expressions; of N frames until they are `split`.

    Attributes:
        high_res: maps after `conv_s0` (1, C/8, 4h, 4w) and `conv_s1` (1, C/4, 2h, 2w).
        embed: (1, C, h, w) coarsest map, without memory.
        position: (1, C, h, w) its sine position code.
    """

    high_res: tuple[torch.Tensor, torch.Tensor]
    embed: torch.Tensor
    position: torch.Tensor

    def split(self) -> list[FrameFeatures]:
        """The features of each frame."""
        parts = (part.split(1) for part in (*self.high_res, self.embed, self.position))
        return [FrameFeatures((fine, middle), *rest) for fine, middle, *rest in zip(*parts, strict=True)]

    def alone(self, position: torch.Tensor) -> FrameFeatures:
        """A copy that outlives the frames it was made with; `position`, the same for all frames, is shared."""
        fine, middle = self.high_res
        return FrameFeatures((fine.clone(), middle.clone()), self.embed.clone(), position)


@dataclass(frozen=True)
class MaskOutput:
    """What one frame decodes to, for E expressions.

    Attributes:
        low_res: (E, 1, 4h, 4w) low-res logits; the mask is `upsampled > 0`.
        iou: (E,) predicted IoU of the returned mask, 0..1.
        candidates: (E, 4, 4h, 4w) logits of the single mask and the three alternatives.
        candidate_iou: (E, 4) their predicted IoU.
        stability: (E,) stability score of the single mask.
        object_score: (E,) SAM-2's object logit (not used by GLUS unless `object_score_gating`).
        embed: (E, C, h, w) the decoder's image input: memory-conditioned or plus `no_mem_embed`.
        token: (E, C) output token of the single mask, the source of object pointers.
    """

    low_res: torch.Tensor
    iou: torch.Tensor
    candidates: torch.Tensor
    candidate_iou: torch.Tensor
    stability: torch.Tensor
    object_score: torch.Tensor
    embed: torch.Tensor
    token: torch.Tensor


def _image_encoder(c: Sam2Config) -> ImageEncoder:
    trunk = Hiera(
        embed_dim=c.trunk_dim,
        num_heads=c.trunk_heads,
        stages=c.stages,
        global_att_blocks=c.global_blocks,
        window_pos_embed_bkg_spatial_size=(c.background_size, c.background_size),
        window_spec=c.windows,
    )
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(c.hidden_size, warmup_cache=False),
        d_model=c.hidden_size,
        backbone_channel_list=trunk.channel_list,
        fpn_interp_model="nearest",
        fpn_top_down_levels=[2, 3],
    )
    return ImageEncoder(trunk=trunk, neck=neck, scalp=1)


def _memory_attention(c: Sam2Config) -> MemoryAttention:
    common = {"feat_sizes": (c.embed_size, c.embed_size), "embedding_dim": c.hidden_size, "num_heads": 1}
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=c.memory_ffn,
        dropout=c.memory_dropout,
        pos_enc_at_attn=False,
        self_attention=RoPEAttention(**common, dropout=c.memory_dropout),
        d_model=c.hidden_size,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=RoPEAttention(
            **common, rope_k_repeat=True, kv_in_dim=c.memory_dim, dropout=c.memory_dropout
        ),
    )
    return MemoryAttention(d_model=c.hidden_size, pos_enc_at_input=True, layer=layer, num_layers=c.memory_layers)


def _memory_encoder(c: Sam2Config) -> MemoryEncoder:
    return MemoryEncoder(
        out_dim=c.memory_dim,
        in_dim=c.hidden_size,
        position_encoding=PositionEmbeddingSine(c.memory_dim, warmup_cache=False),
        mask_downsampler=MaskDownSampler(embed_dim=c.hidden_size, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(dim=c.hidden_size, kernel_size=7, padding=3), num_layers=c.fuser_layers),
    )


def _mask_decoder(c: Sam2Config) -> MaskDecoder:
    return MaskDecoder(
        transformer_dim=c.hidden_size,
        transformer=TwoWayTransformer(
            depth=c.decoder_depth,
            embedding_dim=c.hidden_size,
            mlp_dim=c.decoder_ffn,
            num_heads=c.decoder_heads,
        ),
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=c.iou_hidden,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        use_multimask_token_for_obj_ptr=True,
    )


class Sam2Path(nn.Module):
    """SAM-2 prompted by text embeddings, with GLUS's memory rules.

    Calls, in the order of a frame: `encode_frame` -> `condition` -> `decode` -> `encode_memory`.
    """

    def __init__(self, config: Sam2Config, behaviour: Behaviour) -> None:
        super().__init__()
        self.config = config
        self.behaviour = behaviour
        width, mem = config.hidden_size, config.memory_dim
        self.image_encoder = _image_encoder(config)
        self.memory_attention = _memory_attention(config)
        self.memory_encoder = _memory_encoder(config)
        self.sam_prompt_encoder = PromptEncoder(
            embed_dim=width,
            image_embedding_size=(config.embed_size, config.embed_size),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.prompt_mask_channels,
        )
        self.sam_mask_decoder = _mask_decoder(config)
        # Loose tensors of a SAM-2 checkpoint. GLUS reads only no_mem_embed, the behaviours of C7 the others.
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(config.memory_slots, 1, 1, mem))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, width))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, width))
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.obj_ptr_proj = MLP(width, width, width, 3)
        for parameter in (self.maskmem_tpos_enc, self.no_mem_embed, self.no_mem_pos_enc, self.no_obj_ptr):
            nn.init.trunc_normal_(parameter, std=0.02)
        for parameter in self.feature_parameters():
            parameter.requires_grad_(False)  # until a recipe trains them

    @property
    def dtype(self) -> torch.dtype:
        return self.no_mem_embed.dtype

    def feature_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters but the mask decoder's: frozen in the released recipe, and then without a graph.

        The decoder's `conv_s0` and `conv_s1` follow these, not the decoder (section 1.11).
        """
        return (p for name, p in self.named_parameters() if not name.startswith("sam_mask_decoder."))

    def encode_frame(self, pixels: torch.Tensor) -> FrameFeatures:
        """Image features of a frame, or of N frames.

        Args:
            pixels: (N, 3, S, S), normalised, S = `config.image_size`.
        """
        size = self.config.image_size
        if tuple(pixels.shape[-2:]) != (size, size):
            raise ValueError(f"the model takes {size}x{size} frames, got {tuple(pixels.shape)}")
        with graph_if_trained(self.feature_parameters()):
            output = self.image_encoder(pixels.to(self.dtype))
            fine, middle, coarse = output["backbone_fpn"]
            decoder = self.sam_mask_decoder
            # The neck's top-down sum leaves the coarsest map in fp32 under a lower dtype.
            high_res = (decoder.conv_s0(fine), decoder.conv_s1(middle))
            return FrameFeatures(high_res, coarse.to(self.dtype), output["vision_pos_enc"][-1].to(self.dtype))

    def condition(self, features: FrameFeatures, memories: Sequence[Recall], expressions: int) -> torch.Tensor:
        """The coarsest map after memory attention, or plus `no_mem_embed` when nothing is remembered.

        Returns:
            (E, C, h, w).
        """
        with graph_if_trained(self.feature_parameters()):
            height, width = features.embed.shape[-2:]
            embed = features.embed.expand(expressions, -1, -1, -1)
            current = embed.flatten(2).permute(2, 0, 1)
            if not memories:
                current = current + self.no_mem_embed
            else:
                keys, positions, pointer_tokens = self._memory_tokens(memories)
                position = features.position.flatten(2).permute(2, 0, 1).expand(-1, expressions, -1)
                current = self.memory_attention(
                    curr=current,
                    curr_pos=position,
                    memory=keys,
                    memory_pos=positions,
                    num_obj_ptr_tokens=pointer_tokens,
                )
            return current.permute(1, 2, 0).reshape(expressions, -1, height, width)

    def _memory_tokens(self, memories: Sequence[Recall]) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Memories as attention keys (tokens, E, memory_dim), their codes, and how many are pointer tokens."""
        keys, positions = [], []
        for recall in memories:
            code = recall.entry.position.flatten(2).permute(2, 0, 1)
            if self.behaviour.memory_temporal_encoding:
                code = code + self.maskmem_tpos_enc[recall.slot - 1]
            keys.append(recall.entry.features.flatten(2).permute(2, 0, 1))
            positions.append(code)
        pointer_tokens = 0
        if self.behaviour.object_pointers:
            pointers = [r.entry.pointer for r in memories if r.entry.pointer is not None]
            stacked = torch.stack(pointers)  # (M, E, C), each cut into C / memory_dim tokens
            cut = stacked.shape[-1] // self.config.memory_dim
            stacked = stacked.unflatten(-1, (cut, self.config.memory_dim)).permute(0, 2, 1, 3).flatten(0, 1)
            keys.append(stacked)
            positions.append(torch.zeros_like(stacked))
            pointer_tokens = stacked.shape[0]
        return torch.cat(keys), torch.cat(positions), pointer_tokens

    def dense_position(self) -> torch.Tensor:
        """(1, C, h, w) random Fourier code of the pixel grid, in the model dtype.

        Computed in fp32 or, as the original's edit of SAM-2 does, in the dtype of the Gaussian matrix (C10).
        """
        matrix = self.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        if self.behaviour.fp32_islands:
            matrix = matrix.float()
        size = self.config.embed_size
        ones = torch.ones(size, size, device=matrix.device, dtype=matrix.dtype)
        rows, columns = (ones.cumsum(0) - 0.5) / size, (ones.cumsum(1) - 0.5) / size
        angles = 2 * math.pi * ((2 * torch.stack([columns, rows], dim=-1) - 1) @ matrix)
        code = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return code.permute(2, 0, 1)[None].to(self.dtype)

    def decode(self, features: FrameFeatures, embed: torch.Tensor, seg_embedding: torch.Tensor) -> MaskOutput:
        """Masks from a conditioned map and one text embedding per expression.

        Args:
            embed: (E, C, h, w) from `condition`.
            seg_embedding: (E, C) projected [SEG] states.
        """
        expressions = seg_embedding.shape[0]
        dense = self.sam_prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(embed)
        masks, iou, tokens, object_score = self.sam_mask_decoder.predict_masks(
            image_embeddings=embed,
            image_pe=self.dense_position(),
            sparse_prompt_embeddings=seg_embedding[:, None].to(embed.dtype),
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[m.expand(expressions, -1, -1, -1) for m in features.high_res],
        )
        stability = stability_score(masks[:, 0])
        chosen = torch.zeros(expressions, dtype=torch.long, device=masks.device)
        if self.behaviour.stability_fallback and not self.training:
            best = iou[:, 1:].argmax(dim=-1) + 1
            chosen = torch.where(stability >= STABILITY_THRESHOLD, chosen, best)
        rows = torch.arange(expressions, device=masks.device)
        low_res = masks[rows, chosen][:, None]
        if self.behaviour.object_score_gating:
            low_res = torch.where(object_score[..., None, None] > 0, low_res, ABSENT_LOGIT)
        return MaskOutput(
            low_res, iou[rows, chosen], masks, iou, stability, object_score[:, 0], embed, tokens[:, 0]
        )

    def encode_memory(self, features: FrameFeatures, output: MaskOutput) -> MemoryEntry:
        """The memory of a decoded frame, detached where the features are frozen (section 1.9)."""
        with graph_if_trained(self.feature_parameters()):
            return self._encode_memory(features, output)

    def _encode_memory(self, features: FrameFeatures, output: MaskOutput) -> MemoryEntry:
        size = self.config.image_size
        mask = F.interpolate(output.low_res.float(), size=(size, size), mode="bilinear", align_corners=False)
        if not self.behaviour.fp32_islands:
            mask = mask.to(self.dtype)
        mask = (mask.sigmoid() * MEMORY_MASK_SCALE + MEMORY_MASK_BIAS).to(self.dtype)
        expressions = output.low_res.shape[0]
        conditioned = self.behaviour.memory_features == "conditioned"
        image = output.embed if conditioned else features.embed.expand(expressions, -1, -1, -1)
        encoded = functional_call(
            self.memory_encoder, self._gamma_override(), (image, mask), {"skip_mask_sigmoid": True}
        )
        pointer = None
        if self.behaviour.object_pointers:
            present = (output.object_score > 0).to(self.dtype)[:, None]
            pointer = present * self.obj_ptr_proj(output.token) + (1 - present) * self.no_obj_ptr
        position = encoded["vision_pos_enc"][0].expand(expressions, -1, -1, -1)
        return MemoryEntry(encoded["vision_features"], position, pointer)

    def _gamma_override(self) -> dict[str, torch.Tensor]:
        """The layer scales the original's loader leaves behind (C11), without touching the weights."""
        if not self.behaviour.reset_memory_gamma:
            return {}
        return {
            name: torch.full_like(parameter, RELEASED_GAMMA)
            for name, parameter in self.memory_encoder.named_parameters()
            if name.endswith(".gamma")
        }


def stability_score(logits: torch.Tensor) -> torch.Tensor:
    """Share of pixels above -delta that are also above +delta: (E, h, w) -> (E,), 1 where none is (C9)."""
    flat = logits.flatten(1)
    inner = (flat > STABILITY_DELTA).sum(dim=-1).float()
    outer = (flat > -STABILITY_DELTA).sum(dim=-1).float()
    return torch.where(outer > 0, inner / outer.clamp(min=1), 1.0)


def upsample_logits(low_res: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Low-res logits (E, 1, h, w) -> fp32 logits (E, height, width); the mask is `> 0` (section 1.7)."""
    full = F.interpolate(low_res.float(), size=(height, width), mode="bilinear", align_corners=False)
    return full[:, 0]
