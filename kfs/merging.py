"""Chat-UniVi token merging: density-peak clustering of patch tokens (reference kfs.md, 2.3 and 2.4).

Nothing here is learned. A frame's patches are merged to 64 tokens, those to 32, those to 16, and all 112 are kept.
The video path finds events first (clusters of frames) and merges the tokens of an event's frames once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from glus.errors import InputError

Noise = Callable[[tuple[int, int]], torch.Tensor]
"""(B, N) -> uniform draws in [0, 1) of that shape. The original adds them, scaled, to every density."""

NOISE_SCALE = 1e-6
WEIGHT_EPSILON = 1e-6
NEIGHBOURS = (5, 3, 3)
EVENT_NEIGHBOURS = 5


@dataclass(frozen=True)
class MergingConfig:
    """Cluster counts (above 1) or ratios (up to 1) of the three levels, and of frames to events."""

    spatial: tuple[int, ...] = (64, 32, 16)
    temporal: float = 0.0625

    def __post_init__(self) -> None:
        if len(self.spatial) != len(NEIGHBOURS) or min(self.spatial) < 1 or self.temporal <= 0:
            raise InputError(
                f"merging needs {len(NEIGHBOURS)} spatial counts from 1 and a temporal one above 0, found {self}"
            )

    @property
    def tokens_per_image(self) -> int:
        return sum(self.spatial)


@dataclass(frozen=True)
class Clusters:
    """A clustering of N tokens.

    Attributes:
        index: (B, N) int64, the cluster of each token.
        centres: (B, clusters) int64, the token at the centre of each cluster, best first.
        score: (B, N) what centres are chosen by.
        nearest: (B, N, k) distances to the nearest tokens, itself included.
    """

    index: torch.Tensor
    centres: torch.Tensor
    score: torch.Tensor
    nearest: torch.Tensor


def cluster_count(ratio: float, tokens: int) -> int:
    """Clusters asked for by a number of them, or by a share of the tokens."""
    return max(math.ceil(ratio if ratio > 1 else tokens * ratio), 1)


def neighbour_count(k: int, clusters: int) -> int:
    """How many neighbours the density looks at: fewer when there are fewer clusters than `k`."""
    return min(3, max(clusters // 2, 1)) if k > clusters else k


@torch.no_grad()
def cluster(
    tokens: torch.Tensor, k: int, clusters: int, noise: Noise | None = None, mask: torch.Tensor | None = None
) -> Clusters:
    """DPC-KNN: centres are dense tokens that lie far from any denser one; the rest joins the nearest centre.

    Args:
        tokens: (B, N, C); distances are taken in fp32. N must be at least `clusters` and `k`.
        noise: breaks ties of density; without it the same tokens always give the same clusters.
        mask: (B, N), true on real tokens; none means that all are.

    Raises:
        ValueError: fewer tokens than clusters or neighbours.
    """
    batch, count, width = tokens.shape
    if count < max(clusters, k):
        raise ValueError(f"{count} tokens cannot make {clusters} clusters by {k} neighbours")
    values = tokens.float()
    distance = torch.cdist(values, values) / math.sqrt(width)
    if mask is not None:
        distance = distance.masked_fill(~mask.bool()[:, None], float(distance.max()) + 1)
    nearest = distance.topk(k, dim=-1, largest=False).values
    density = nearest.square().mean(dim=-1).neg().exp()
    if noise is not None:
        density = density + NOISE_SCALE * noise((batch, count)).to(density)
    if mask is not None:
        density = density * mask
    denser = density[:, None] > density[:, :, None]
    farthest = distance.amax(dim=(1, 2), keepdim=True)
    score = torch.where(denser, distance, farthest).amin(dim=-1) * density
    # Two tokens that are each other's nearest can tie exactly; then only topk's order is the original's.
    centres = score.topk(clusters, dim=-1).indices
    to_centres = distance.gather(1, centres[..., None].expand(-1, -1, count))
    own = torch.arange(clusters, device=tokens.device).expand(batch, -1)
    index = to_centres.argmin(dim=1).scatter(1, centres, own)
    return Clusters(index, centres, score, nearest)


def merge_shares(index: torch.Tensor, clusters: int, weight: torch.Tensor | None = None) -> torch.Tensor:
    """(B, clusters, N) fp32: what share of each merged token every token has.

    Args:
        index: (B, N) the cluster of each token.
        weight: (B, N); all equal without it.
    """
    shares = F.one_hot(index, clusters).transpose(1, 2).float()
    if weight is not None:
        shares = shares * weight[:, None]
    return shares / (shares.sum(dim=-1, keepdim=True) + WEIGHT_EPSILON)


def merge(tokens: torch.Tensor, index: torch.Tensor, clusters: int) -> torch.Tensor:
    """(B, N, C) -> (B, clusters, C): means of clusters, in fp32 and in a fixed order, in the tokens' dtype."""
    return (merge_shares(index, clusters) @ tokens.float()).to(tokens.dtype)


def _merge_level(
    tokens: torch.Tensor, ratio: float, k: int, noise: Noise | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One level; -> merged tokens and the cluster of each token."""
    clusters = cluster_count(ratio, tokens.shape[1])
    index = cluster(tokens, neighbour_count(k, clusters), clusters, noise).index
    return merge(tokens, index, clusters), index


def merge_levels(
    patches: torch.Tensor, config: MergingConfig, noise: Noise | None = None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Merge frames level by level, each frame on its own.

    Args:
        patches: (B, N, C).

    Returns:
        Per level its tokens, (B, clusters, C), and in which of them each patch ended, (B, N).
    """
    tokens, origin = patches, None
    levels, origins = [], []
    for ratio, k in zip(config.spatial, NEIGHBOURS, strict=True):
        tokens, index = _merge_level(tokens, ratio, k, noise)
        origin = index if origin is None else index.gather(1, origin)
        levels.append(tokens)
        origins.append(origin)
    return levels, origins


def merge_frames(patches: torch.Tensor, config: MergingConfig, noise: Noise | None = None) -> torch.Tensor:
    """The image path: (B, N, C) -> (B, tokens_per_image, C), coarser levels last."""
    return torch.cat(merge_levels(patches, config, noise)[0], dim=1)


def find_events(patches: torch.Tensor, config: MergingConfig, noise: Noise | None = None) -> list[list[int]]:
    """Frames of each event, events by first appearance; the frames of one need not follow each other.

    Up to 48 frames the density of every frame is 1 but for rounding, so without noise the choice among them
    rests on it (reference kfs.md, 2.4); up to 16 there is one event.

    Args:
        patches: (T, N, C).
    """
    frames = patches.float().mean(dim=1)[None]
    clusters = cluster_count(config.temporal, frames.shape[1])
    index = cluster(frames, neighbour_count(EVENT_NEIGHBOURS, clusters), clusters, noise).index[0].tolist()
    return [[t for t, event in enumerate(index) if event == wanted] for wanted in dict.fromkeys(index)]


def merge_video(
    patches: torch.Tensor, config: MergingConfig, noise: Noise | None = None
) -> tuple[torch.Tensor, list[list[int]]]:
    """The video path of Chat-UniVi: (T, N, C) -> (events * tokens_per_image, C), and the frames of each event."""
    events = find_events(patches, config, noise)
    levels, _ = merge_levels(patches, config, noise)
    merged = [_merge_event(levels, event, config, noise) for event in events]
    return torch.cat(merged), events


def _merge_event(
    levels: Sequence[torch.Tensor], frames: list[int], config: MergingConfig, noise: Noise | None
) -> torch.Tensor:
    joined = [level[frames].flatten(0, 1)[None] for level in levels]
    parts = zip(joined, config.spatial, NEIGHBOURS, strict=True)
    return torch.cat([_merge_level(tokens, ratio, k, noise)[0][0] for tokens, ratio, k in parts])
