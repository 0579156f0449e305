"""Unified affinity decoder (METHOD 4; paper 3.2.2, A.1, Algorithm 1)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samcp.modeling.layers import (
    MLP,
    AttentionLayer,
    BoxEmbedding,
    FeedForward,
    full_precision,
    init_transformer,
    sine_embedding,
    unmask_empty_rows,
    without_autocast,
)
from samcp.modeling.patch_batch import PatchBatch
from samcp.modeling.queries import QueryAttention, QuerySet

DCA_SOURCES = ("patch", "image")  # keys and values of dynamic cross-attention

_PAIRS_PER_CHUNK = 65536  # (query, patch) pairs


@dataclass(frozen=True)
class DecoderOutput:
    """Output of one decoder layer.

    Attributes:
        queries: (B, M, D) after the shared LayerNorm.
        affinity_logits: (B, M, N), undefined for padding.
        boxes: (B, M, 4) merged boxes of the queries, XYXY normalised, without gradient.
    """

    queries: Tensor
    affinity_logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class ImageTokens:
    """Feature levels as one sequence of T tokens, for image-level cross-attention (Table 5).

    Attributes:
        features, position: (B, T, D).
        centers: (T, 2) x, y in input pixels.
        valid: (B, T) bool, False for padding.
    """

    features: Tensor
    position: Tensor
    centers: Tensor
    valid: Tensor


class AffinityDecoder(nn.Module):
    """Decoder that computes query-patch affinities and attends to the patches with high affinity, layer by layer.

    Args:
        dim, num_heads, ffn_dim, num_layers: D, eta, hidden width of the feed-forward networks, omega.
        dca: cross-attention on "patch" or "image" features (Table 5).
        dca_mask: mask patches that had a low affinity in the previous layer (DCA, Table 4).
        affinity_refinement: add the affinity logits of the previous layer (AR, Table 4).
        query_enhancement: average queries with the RoI features of their boxes (QE, Table 4).
        strides: of the ``levels`` passed to ``forward``, for image-level cross-attention.
        activation_checkpoint: recompute layers in the backward pass.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        num_layers: int,
        dca: str = "patch",
        dca_mask: bool = True,
        affinity_refinement: bool = True,
        query_enhancement: bool = True,
        strides: Sequence[int] = (),
        activation_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if dca not in DCA_SOURCES:
            raise ValueError(f"dca is {dca!r}; choose {' or '.join(map(repr, DCA_SOURCES))}")
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; it must be at least 1")
        self.dim = dim
        self.dca = dca
        self.dca_mask = dca_mask
        self.affinity_refinement = affinity_refinement
        self.query_enhancement = query_enhancement
        self.strides = list(strides)
        self.activation_checkpoint = activation_checkpoint
        self.position = BoxEmbedding(dim)
        if dca == "image":
            self.level_embedding = nn.Parameter(torch.zeros(len(strides), dim))
            nn.init.normal_(self.level_embedding)
        # Refinement sums the logits of all layers, and so their biases. Only the first layer's bias is initialised to
        # the prior, so that the initial affinity is 0.01 in every layer.
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, ffn_dim, prior=0.5 if affinity_refinement and i else 0.01)
            for i in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        init_transformer(self.position)

    def forward(
        self,
        *,
        queries: QuerySet,
        features: Tensor,
        position: Tensor,
        patches: PatchBatch,
        levels: Sequence[Tensor],
        embed_boxes: Callable[[Tensor], Tensor],
    ) -> list[DecoderOutput]:
        """Run all layers.

        Args:
            queries: M queries per image.
            features, position: (B, N, D) F and P_F of the patch encoder.
            levels: feature maps, fine to coarse, for image-level cross-attention.
            embed_boxes: the patch encoder's RoI embedding of boxes (B, M, 4) in input pixels, for query enhancement.

        Returns:
            One output per layer. All are supervised; the last one is the prediction.
        """
        tokens = self._image_tokens(levels, patches) if self.dca == "image" else None
        x, boxes = queries.content, queries.boxes
        instance_valid = patches.valid[:, : queries.num_instance]
        logits: Tensor | None = None
        normalized: Tensor | None = None
        outputs = []
        for layer in self.layers:
            x_pos = self.position(boxes).to(x.dtype)
            args = (x, x_pos, queries.visible, instance_valid, features, position)
            memory = self._cross_attention_memory(features, position, patches.valid, normalized, boxes, tokens, patches)
            if self.activation_checkpoint and self.training:
                x, new_logits = checkpoint(layer, *args, *memory, use_reentrant=False)
            else:
                x, new_logits = layer(*args, *memory)
            logits = new_logits + logits if self.affinity_refinement and logits is not None else new_logits
            with torch.no_grad():
                normalized = normalize_affinity(logits.sigmoid(), patches.valid)
                boxes = merged_boxes(normalized > 0.5, patches.normalized_boxes)
            if self.query_enhancement:
                x = (x + embed_boxes(boxes * patches.scale).to(x.dtype)) / 2
            outputs.append(DecoderOutput(self.norm(x), logits, boxes))
        return outputs

    def _cross_attention_memory(
        self,
        features: Tensor,
        position: Tensor,
        valid: Tensor,
        normalized: Tensor | None,
        boxes: Tensor,
        tokens: ImageTokens | None,
        patches: PatchBatch,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features, positions and visibility mask of the keys of cross-attention.

        From layer 2 on, a query attends to the patches with a normalised affinity of at least 0.5 in the previous
        layer or, at image level, to the tokens inside the merged box of these patches.
        """
        if tokens is None:
            visible = valid.unsqueeze(1)
            if self.dca_mask and normalized is not None:
                visible = visible & (normalized >= 0.5)
            return features, position, unmask_empty_rows(visible)
        visible = tokens.valid.unsqueeze(1)
        if self.dca_mask and normalized is not None:
            corners = (boxes * patches.scale).unsqueeze(2)
            inside = (tokens.centers >= corners[..., :2]) & (tokens.centers < corners[..., 2:])
            inside = visible & inside.all(-1)
            visible = torch.where(inside.any(-1, keepdim=True), inside, visible)  # a box may contain no token centre
        return tokens.features, tokens.position, unmask_empty_rows(visible)

    def _image_tokens(self, levels: Sequence[Tensor], patches: PatchBatch) -> ImageTokens:
        size = patches.scale[:, :, :2]
        features, position, centers = [], [], []
        for level, stride, embedding in zip(levels, self.strides, self.level_embedding, strict=True):
            h, w = level.shape[-2:]
            ys = (torch.arange(h, device=level.device) + 0.5) * stride
            xs = (torch.arange(w, device=level.device) + 0.5) * stride
            level_centers = torch.stack([xs.repeat(h), ys.repeat_interleave(w)], dim=-1)
            features.append(level.flatten(2).transpose(1, 2))
            position.append(sine_embedding(level_centers / size, self.dim // 2).flatten(-2).to(level.dtype) + embedding)
            centers.append(level_centers)
        all_centers = torch.cat(centers)
        valid = (all_centers < size).all(-1)
        return ImageTokens(torch.cat(features, dim=1), torch.cat(position, dim=1), all_centers, valid)


class DecoderLayer(nn.Module):
    """Decoder layer: self-attention, affinity, dynamic cross-attention, feed-forward (METHOD 4, steps 1, 2, 4, 5)."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, prior: float = 0.01) -> None:
        super().__init__()
        self.self_attention = QueryAttention(dim, num_heads)
        self.affinity = Affinity(dim, num_heads, ffn_dim, prior)
        self.cross_attention = AttentionLayer(dim, num_heads)
        self.ffn = FeedForward(dim, ffn_dim)
        init_transformer(self)

    def forward(
        self,
        x: Tensor,
        x_pos: Tensor,
        x_visible: Tensor,
        instance_valid: Tensor,
        features: Tensor,
        position: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        memory_visible: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the queries (B, M, D) and the affinity logits (B, M, N) of this layer before refinement."""
        x = self.self_attention(x, x_pos, x_visible, instance_valid)
        logits = self.affinity(x + x_pos, features + position)
        x = self.cross_attention(x, x_pos, memory, memory_pos, memory_visible)
        return self.ffn(x), logits


class Affinity(nn.Module):
    """Affinity logits of all query-patch pairs (Algorithm 1, lines 1 to 8).

    Queries and patches are projected by two separate residual feed-forward networks, x + W2 ReLU(W1 x), as in the
    released code; the paper calls them "fc".

    Args:
        dim: width D of queries and patches.
        num_heads: eta, the number of similarities combined per pair.
        ffn_dim: hidden width of the projections.
        prior: initial affinity, which sets the initial bias.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, prior: float = 0.01) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_ffn = MLP(dim, ffn_dim, dim)
        self.patch_ffn = MLP(dim, ffn_dim, dim)
        self.mix = nn.ModuleList(HeadLinear(num_heads, d_out) for d_out in (num_heads, num_heads, 1))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.patch_bias = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.tensor(math.log(prior / (1 - prior))))

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Return logits (B, M, N), at least float32; positions are added to queries (B, M, D) and patches (B, N, D)."""
        q = (queries + self.query_ffn(queries)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k = (patches + self.patch_ffn(patches)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        similarity = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        logits = full_precision(self._mix_heads(similarity)) / self.log_scale.exp()
        with without_autocast(patches):
            return logits + (full_precision(patches) @ self.patch_bias + self.bias).unsqueeze(1)

    def _mix_heads(self, similarity: Tensor) -> Tensor:
        """Apply three times ReLU and a 1x1 convolution over the head axis: (B, eta, M, N) -> (B, M, N).

        The pairs are split into chunks that fit in a CPU's cache, since this step is bound by memory bandwidth.
        """
        chunks = []
        pairs = similarity.flatten(2)
        exporting = torch.compiler.is_exporting()  # the number of chunks would be fixed
        for x in [pairs] if exporting else pairs.split(_PAIRS_PER_CHUNK, dim=-1):
            for mix in self.mix:
                x = mix(x.relu())
            chunks.append(x)
        return torch.cat(chunks, dim=-1).squeeze(1).unflatten(-1, similarity.shape[2:])


class HeadLinear(nn.Linear):
    """1x1 convolution as a matrix product; for eight channels several times faster than a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, L) to (B, out, L)."""
        return torch.baddbmm(self.bias[:, None].expand(len(x), -1, -1), self.weight.expand(len(x), -1, -1), x)


def normalize_affinity(affinity: Tensor, valid: Tensor) -> Tensor:
    """Scale the affinities of each query to [0, 1] over its valid patches: (A - min) / (max - min).

    If the maximum equals the minimum, the row becomes 1 (no patch is masked), or 0 if it is all zero.

    Args:
        affinity: (..., M, N) in [0, 1].
        valid: (..., N) bool.

    Returns:
        (..., M, N), 0 for padding.
    """
    padding = ~valid.unsqueeze(-2)
    low = affinity.masked_fill(padding, float("inf")).amin(-1, keepdim=True)
    high = affinity.masked_fill(padding, float("-inf")).amax(-1, keepdim=True)
    span = high - low
    scaled = torch.where(span > 0, (affinity - low) / span.clamp(min=1e-38), (high > 0).to(affinity.dtype))
    return scaled.masked_fill(padding, 0.0)


def merged_boxes(members: Tensor, boxes: Tensor) -> Tensor:
    """Return the bounding box of each query's patches, the whole image if it has none (METHOD 4, step 6).

    Args:
        members: (B, M, N) bool.
        boxes: (B, N, 4) XYXY normalised.

    Returns:
        (B, M, 4) XYXY normalised.
    """
    outside = ~members
    low = [boxes[:, None, :, i].masked_fill(outside, float("inf")).amin(-1) for i in (0, 1)]
    high = [boxes[:, None, :, i].masked_fill(outside, float("-inf")).amax(-1) for i in (2, 3)]
    merged = torch.stack(low + high, dim=-1)
    whole_image = (torch.arange(4, device=merged.device) >= 2).to(merged.dtype)
    return torch.where(members.any(-1, keepdim=True), merged, whole_image)
