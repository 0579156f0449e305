"""Patch encoder: RoIAlign, MaskRoI, MLP and self-attention (METHOD 2; paper 3.2.1, A.1)."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samcp.modeling.layers import MLP, AttentionLayer, BoxEmbedding, FeedForward, init_transformer, unmask_empty_rows
from samcp.modeling.patch_batch import PatchBatch
from samcp.modeling.roi_align import build_pooler


class RoIEmbedding(nn.Module):
    """Embedding of boxes: RoIAlign -> (times a mask) -> MLP -> LayerNorm.

    Args:
        strides: of the feature levels passed to ``forward``, fine to coarse.
        in_channels: number of channels of each level.
        dim: width D of the result.
        roi_size: S, side length of RoIAlign's S x S output.
        fc_dim: hidden width of the MLP.
    """

    def __init__(self, *, strides: Sequence[int], in_channels: int, dim: int, roi_size: int, fc_dim: int) -> None:
        super().__init__()
        self.pooler = build_pooler(roi_size, strides)
        self.mlp = MLP(in_channels * roi_size**2, fc_dim, dim)
        self.norm = nn.LayerNorm(dim)
        init_transformer(self.mlp)

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor], masks: Tensor | None = None) -> Tensor:
        """Embed ``boxes``, one (n_i, 4) XYXY tensor in input pixels per image.

        Args:
            masks: (sum n_i, S, S) factors of the pooled features, or None.

        Returns:
            (sum n_i, D)
        """
        pooled = self.pooler(list(features), [Boxes(b) for b in boxes])
        if masks is not None:
            pooled = pooled * masks.unsqueeze(1).to(pooled.dtype)
        return self.norm(self.mlp(pooled.flatten(1)))


class RoIEmbeddingCache:
    """Cached RoI embeddings of boxes in one batch, each computed once.

    Many queries have the same merged box, in one layer or in several. A trained model has three to five times as many
    boxes as distinct boxes, and pooling them is the most expensive part of the decoder.

    Args:
        roi_embedding: computes the embeddings.
        levels: feature maps that it pools from.
    """

    def __init__(self, roi_embedding: RoIEmbedding, levels: Sequence[Tensor]) -> None:
        self.roi_embedding = roi_embedding
        self.levels = levels
        self.num_images = len(levels[0])
        self.cached = levels[0].new_zeros(0, 5, dtype=torch.float32)  # rows of image index and box
        self.embeddings: Tensor | None = None

    def __call__(self, boxes: Tensor) -> Tensor:
        """Embed boxes (B, M, 4), XYXY in input pixels without gradient, as (B, M, D)."""
        images = torch.arange(self.num_images, device=boxes.device, dtype=boxes.dtype)
        rows = torch.cat([images[:, None, None].expand(*boxes.shape[:2], 1), boxes], dim=-1).flatten(0, 1)
        unique, inverse = torch.cat([self.cached, rows]).unique(dim=0, return_inverse=True)
        cache_index = inverse.new_full((len(unique),), -1)
        cache_index[inverse[: len(self.cached)]] = torch.arange(len(self.cached), device=cache_index.device)
        is_new = cache_index < 0
        cache_index = torch.where(is_new, len(self.cached) + is_new.cumsum(0) - 1, cache_index)
        self._add(unique[is_new])
        assert self.embeddings is not None
        return self.embeddings.index_select(0, cache_index[inverse[-len(rows) :]]).unflatten(0, boxes.shape[:2])

    def _add(self, rows: Tensor) -> None:
        """Embed and cache boxes; the rows are sorted by image index."""
        counts = (rows[:, 0] == torch.arange(self.num_images, device=rows.device)[:, None]).sum(1)
        added = self.roi_embedding(self.levels, rows[:, 1:].split(counts.tolist()))
        self.cached = torch.cat([self.cached, rows])
        self.embeddings = added if self.embeddings is None else torch.cat([self.embeddings, added])


class PatchEncoder(nn.Module):
    """Encoder of the patches of a batch.

    Args:
        roi_embedding: shared with the decoder's query enhancement.
        dim, num_heads, ffn_dim, num_layers: of the self-attention layers; 0 layers is Table 5's "w/o PE".
        mask_roi: multiply RoI features by the mask of the patch (MaskRoI, Table 4).
        activation_checkpoint: recompute layers in the backward pass.
    """

    def __init__(
        self,
        *,
        roi_embedding: RoIEmbedding,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        num_layers: int,
        mask_roi: bool = True,
        activation_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.roi_embedding = roi_embedding
        self.mask_roi = mask_roi
        self.activation_checkpoint = activation_checkpoint
        self.position = BoxEmbedding(dim)
        self.layers = nn.ModuleList(EncoderLayer(dim, num_heads, ffn_dim) for _ in range(num_layers))
        init_transformer(self.position)
        init_transformer(self.layers)

    def forward(self, features: Sequence[Tensor], patches: PatchBatch) -> tuple[Tensor, Tensor]:
        """Return the patch features F and their positions P_F, each (B, N, D), 0 for padding."""
        rows = self.roi_embedding(
            features,
            [boxes[valid] for boxes, valid in zip(patches.boxes, patches.valid, strict=True)],
            patches.roi_masks[patches.valid] if self.mask_roi else None,
        )
        x = rows.new_zeros(*patches.valid.shape, rows.shape[-1])
        x[patches.valid] = rows
        return self.attend(x, patches)

    def attend(self, x: Tensor, patches: PatchBatch) -> tuple[Tensor, Tensor]:
        """Return F and P_F as :meth:`forward` does, from the RoI embeddings x (B, N, D), any values for padding."""
        position = self.position(patches.normalized_boxes).to(x.dtype)
        visible = unmask_empty_rows(patches.valid.unsqueeze(1))
        for layer in self.layers:
            if self.activation_checkpoint and self.training:
                x = checkpoint(layer, x, position, visible, use_reentrant=False)
            else:
                x = layer(x, position, visible)
        zero = ~patches.valid.unsqueeze(-1)
        return x.masked_fill(zero, 0.0), position.masked_fill(zero, 0.0)


class EncoderLayer(nn.Module):
    """Encoder layer: self-attention of the patches of an image, and a feed-forward network."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attention = AttentionLayer(dim, num_heads)
        self.ffn = FeedForward(dim, ffn_dim)

    def forward(self, x: Tensor, position: Tensor, visible: Tensor) -> Tensor:
        return self.ffn(self.self_attention(x, position, x, position, visible))
