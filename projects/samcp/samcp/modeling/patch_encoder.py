"""From patches to features: RoIAlign, MaskRoI, MLP and self-attention (METHOD 2; paper 3.2.1, A.1)."""

from collections.abc import Sequence

from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samcp.modeling.layers import MLP, AttentionLayer, BoxEmbedding, FeedForward, init_transformer, some_visible
from samcp.modeling.patch_batch import PatchBatch
from samcp.modeling.roi_align import build_pooler


class RoIEmbedding(nn.Module):
    """Pool the features of boxes and embed them: RoIAlign -> (times a mask) -> MLP -> LayerNorm.

    Args:
        strides: of the feature levels given to ``forward``, fine to coarse.
        in_channels: of every level.
        dim: width D of the result.
        roi_size: S, RoIAlign's output is S x S.
        fc_dim: hidden width of the MLP.
    """

    def __init__(self, *, strides: Sequence[int], in_channels: int, dim: int, roi_size: int, fc_dim: int) -> None:
        super().__init__()
        self.pooler = build_pooler(roi_size, strides)
        self.mlp = MLP(in_channels * roi_size**2, fc_dim, dim)
        self.norm = nn.LayerNorm(dim)
        init_transformer(self.mlp)

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor], masks: Tensor | None = None) -> Tensor:
        """Embed ``boxes``, one (n_i, 4) XYXY tensor in input pixels an image.

        Args:
            masks: (sum n_i, S, S) that multiply the pooled features, or None.

        Returns:
            (sum n_i, D)
        """
        pooled = self.pooler(list(features), [Boxes(b) for b in boxes])
        if masks is not None:
            pooled = pooled * masks.unsqueeze(1).to(pooled.dtype)
        return self.norm(self.mlp(pooled.flatten(1)))


class PatchEncoder(nn.Module):
    """Encode every patch of every image.

    Args:
        roi_embedding: shared with the decoder's query enhancement.
        dim, num_heads, ffn_dim, num_layers: of the self-attention layers; 0 layers is Table 5's "w/o PE".
        mask_roi: multiply RoI features by the patch's own mask (MaskRoI, Table 4).
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
        """Returns the patch features F and their positions P_F, each (B, N, D); zeros where padded."""
        rows = self.roi_embedding(
            features,
            [boxes[valid] for boxes, valid in zip(patches.boxes, patches.valid, strict=True)],
            patches.roi_masks[patches.valid] if self.mask_roi else None,
        )
        x = rows.new_zeros(*patches.valid.shape, rows.shape[-1])
        x[patches.valid] = rows
        position = self.position(patches.normalized_boxes).to(x.dtype)
        visible = some_visible(patches.valid.unsqueeze(1))
        for layer in self.layers:
            if self.activation_checkpoint and self.training:
                x = checkpoint(layer, x, position, visible, use_reentrant=False)
            else:
                x = layer(x, position, visible)
        zero = ~patches.valid.unsqueeze(-1)
        return x.masked_fill(zero, 0.0), position.masked_fill(zero, 0.0)


class EncoderLayer(nn.Module):
    """Self-attention among the patches of an image and a feed-forward network."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attention = AttentionLayer(dim, num_heads)
        self.ffn = FeedForward(dim, ffn_dim)

    def forward(self, x: Tensor, position: Tensor, visible: Tensor) -> Tensor:
        return self.ffn(self.self_attention(x, position, x, position, visible))
