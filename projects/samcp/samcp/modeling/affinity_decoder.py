"""The unified affinity decoder (METHOD 4; paper 3.2.2, A.1, Algorithm 1)."""

import math
from collections.abc import Sequence
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
    some_visible,
    without_autocast,
)
from samcp.modeling.patch_batch import PatchBatch
from samcp.modeling.patch_encoder import RoIEmbedding
from samcp.modeling.queries import QueryAttention, QuerySet

DCA_SOURCES = ("patch", "image")  # features that dynamic cross-attention reads

_PAIRS_AT_ONCE = 65536  # of a query and a patch


@dataclass(frozen=True)
class DecoderOutput:
    """What one layer of the decoder says.

    Attributes:
        queries: (B, M, D) after the shared LayerNorm.
        affinity_logits: (B, M, N), of any value where the patch is padding.
        boxes: (B, M, 4) the queries' merged boxes, XYXY normalised, without gradient.
    """

    queries: Tensor
    affinity_logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class ImageTokens:
    """All feature levels as one sequence of T tokens, for image-level cross-attention (Table 5).

    Attributes:
        features, position: (B, T, D).
        centers: (T, 2) x, y in input pixels.
        valid: (B, T) bool, False in the padding of the batch.
    """

    features: Tensor
    position: Tensor
    centers: Tensor
    valid: Tensor


class AffinityDecoder(nn.Module):
    """Queries gather the patches they have high affinity with, layer after layer.

    Args:
        dim, num_heads, ffn_dim, num_layers: D, eta, the feed-forward width, omega.
        dca: cross-attention on "patch" or "image" features (Table 5).
        dca_mask: mask what has a low affinity in the layer before (DCA, Table 4).
        affinity_refinement: add the layer before's affinity logits (AR, Table 4).
        query_enhancement: average queries with the RoI features of their boxes (QE, Table 4).
        strides: of the feature levels given to ``forward``, which image-level cross-attention attends to.
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
            raise ValueError(f"num_layers is {num_layers}; the last layer predicts, so at least one is needed")
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
        # With refinement the logits of all layers add up, and so would their biases: only the first layer's bias
        # starts at the prior, so that every layer's affinity starts at 0.01.
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
        roi_embedding: RoIEmbedding,
    ) -> list[DecoderOutput]:
        """Run all layers.

        Args:
            queries: M queries an image.
            features, position: (B, N, D) the encoder's F and P_F.
            levels: the feature maps that RoIs are pooled from, fine to coarse.
            roi_embedding: the patch encoder's, for query enhancement.

        Returns:
            One output a layer; the last one predicts, all are supervised.
        """
        tokens = self._image_tokens(levels, patches) if self.dca == "image" else None
        regions = RegionEmbeddings(roi_embedding, levels)
        x, boxes = queries.content, queries.boxes
        seen = patches.valid[:, : queries.num_instance]  # of the instance queries
        logits: Tensor | None = None
        normalized: Tensor | None = None
        outputs = []
        for layer in self.layers:
            x_pos = self.position(boxes).to(x.dtype)
            args = (x, x_pos, queries.visible, seen, features, position)
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
                x = (x + regions(boxes * patches.scale).to(x.dtype)) / 2
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
        """What cross-attention looks at: keys, their positions, and which of them every query may see.

        From layer 2 on a query sees the patches with a normalised affinity of at least 0.5 in the layer before, or,
        at image level, the tokens inside the box around them.
        """
        if tokens is None:
            visible = valid.unsqueeze(1)
            if self.dca_mask and normalized is not None:
                visible = visible & (normalized >= 0.5)
            return features, position, some_visible(visible)
        visible = tokens.valid.unsqueeze(1)
        if self.dca_mask and normalized is not None:
            corners = (boxes * patches.scale).unsqueeze(2)
            inside = (tokens.centers >= corners[..., :2]) & (tokens.centers < corners[..., 2:])
            inside = visible & inside.all(-1)
            visible = torch.where(inside.any(-1, keepdim=True), inside, visible)  # a box may hold no token's centre
        return tokens.features, tokens.position, some_visible(visible)

    def _image_tokens(self, levels: Sequence[Tensor], patches: PatchBatch) -> ImageTokens:
        size = patches.scale[:, :, :2]
        features, position, centers = [], [], []
        for level, stride, embedding in zip(levels, self.strides, self.level_embedding, strict=True):
            h, w = level.shape[-2:]
            ys = (torch.arange(h, device=level.device) + 0.5) * stride
            xs = (torch.arange(w, device=level.device) + 0.5) * stride
            here = torch.stack([xs.repeat(h), ys.repeat_interleave(w)], dim=-1)
            features.append(level.flatten(2).transpose(1, 2))
            position.append(sine_embedding(here / size, self.dim // 2).flatten(-2).to(level.dtype) + embedding)
            centers.append(here)
        all_centers = torch.cat(centers)
        return ImageTokens(
            features=torch.cat(features, dim=1),
            position=torch.cat(position, dim=1),
            centers=all_centers,
            valid=(all_centers < size).all(-1),
        )


class RegionEmbeddings:
    """Embeddings of boxes in one batch, each box computed once.

    Many queries of all layers have the same merged box: in a trained model there are three to five times as many boxes
    as different ones, and pooling them is the costliest part of the decoder.

    Args:
        roi_embedding, levels: the embedding and the feature maps it pools from.
    """

    def __init__(self, roi_embedding: RoIEmbedding, levels: Sequence[Tensor]) -> None:
        self.roi_embedding = roi_embedding
        self.levels = levels
        self.num_images = len(levels[0])
        self.known = levels[0].new_zeros(0, 5, dtype=torch.float32)  # image index and box
        self.embeddings: Tensor | None = None

    def __call__(self, boxes: Tensor) -> Tensor:
        """(B, M, 4) XYXY in input pixels, without gradient -> (B, M, D)."""
        images = torch.arange(self.num_images, device=boxes.device, dtype=boxes.dtype)
        rows = torch.cat([images[:, None, None].expand(*boxes.shape[:2], 1), boxes], dim=-1).flatten(0, 1)
        unique, index = torch.cat([self.known, rows]).unique(dim=0, return_inverse=True)
        place = index.new_full((len(unique),), -1)
        place[index[: len(self.known)]] = torch.arange(len(self.known), device=place.device)
        new = unique[place < 0]
        place[place < 0] = len(self.known) + torch.arange(len(new), device=place.device)
        self._add(new)
        assert self.embeddings is not None
        return self.embeddings.index_select(0, place[index[-len(rows) :]]).unflatten(0, boxes.shape[:2])

    def _add(self, rows: Tensor) -> None:
        """Embed boxes; rows are sorted, so those of an image follow each other."""
        per_image = [rows[rows[:, 0] == i, 1:] for i in range(self.num_images)]
        added = self.roi_embedding(self.levels, per_image)
        self.known = torch.cat([self.known, rows])
        self.embeddings = added if self.embeddings is None else torch.cat([self.embeddings, added])


class DecoderLayer(nn.Module):
    """Self-attention, affinity, dynamic cross-attention, feed-forward (METHOD 4, steps 1, 2, 4 and 5)."""

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
        seen: Tensor,
        features: Tensor,
        position: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        memory_visible: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Returns the queries (B, M, D) and this layer's affinity logits (B, M, N), before refinement."""
        x = self.self_attention(x, x_pos, x_visible, seen)
        logits = self.affinity(x + x_pos, features + position)
        x = self.cross_attention(x, x_pos, memory, memory_pos, memory_visible)
        return self.ffn(x), logits


class Affinity(nn.Module):
    """Affinity logits of all query-patch pairs (Algorithm 1, lines 1 to 8).

    Queries and patches are projected by residual feed-forward networks, x + W2 ReLU(W1 x), each with weights of its
    own, as in the released code; the paper's "fc".

    Args:
        dim: width D of queries and patches.
        num_heads: eta, the number of similarities that are mixed into one.
        ffn_dim: hidden width of the projections.
        prior: initial affinity, set by the bias.
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
        """Logits (B, M, N), at least float32, of queries (B, M, D) and patches (B, N, D), positions added."""
        q = (queries + self.query_ffn(queries)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k = (patches + self.patch_ffn(patches)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        similarity = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        logits = full_precision(self._mix_heads(similarity)) / self.log_scale.exp()
        with without_autocast(patches):
            return logits + (full_precision(patches) @ self.patch_bias + self.bias).unsqueeze(1)

    def _mix_heads(self, similarity: Tensor) -> Tensor:
        """Three 1x1 convolutions over the head axis, a ReLU in front of each: (B, eta, M, N) -> (B, M, N).

        In pieces that stay in a CPU's cache: all that this quadratic part does is to read and write.
        """
        pieces = []
        for x in similarity.flatten(2).split(_PAIRS_AT_ONCE, dim=-1):
            for mix in self.mix:
                x = mix(x.relu())
            pieces.append(x)
        return torch.cat(pieces, dim=-1).squeeze(1).unflatten(-1, similarity.shape[2:])


class HeadLinear(nn.Linear):
    """A 1x1 convolution as a matrix product: with eight channels several times faster than a convolution's kernels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, L) -> (B, out, L)."""
        return torch.baddbmm(self.bias[:, None].expand(len(x), -1, -1), self.weight.expand(len(x), -1, -1), x)


def normalize_affinity(affinity: Tensor, valid: Tensor) -> Tensor:
    """Scale every query's affinities to [0, 1] over its valid patches: (A - min) / (max - min).

    A row whose maximum equals its minimum becomes 1 (it masks nothing), or 0 if it is all zero (it has no patch).

    Args:
        affinity: (..., M, N) in [0, 1].
        valid: (..., N) bool.

    Returns:
        (..., M, N), 0 where the patch is padding.
    """
    padding = ~valid.unsqueeze(-2)
    low = affinity.masked_fill(padding, float("inf")).amin(-1, keepdim=True)
    high = affinity.masked_fill(padding, float("-inf")).amax(-1, keepdim=True)
    span = high - low
    scaled = torch.where(span > 0, (affinity - low) / span.clamp(min=1e-38), (high > 0).to(affinity.dtype))
    return scaled.masked_fill(padding, 0.0)


def merged_boxes(members: Tensor, boxes: Tensor) -> Tensor:
    """The rectangle around every query's patches, the whole image where it has none (METHOD 4, step 6).

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
    whole = merged.new_tensor([0.0, 0.0, 1.0, 1.0])
    return torch.where(members.any(-1, keepdim=True), merged, whole)
