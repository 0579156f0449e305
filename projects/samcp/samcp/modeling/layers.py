"""Layers shared by encoder and decoder."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert


class MLP(nn.Sequential):
    """Multi-layer perceptron with ReLU between the linear layers: ``dims[0] -> dims[1] -> ... -> dims[-1]``."""

    def __init__(self, *dims: int) -> None:
        layers: list[nn.Module] = []
        for i, (d_in, d_out) in enumerate(itertools.pairwise(dims)):
            layers += [nn.ReLU()] * (i > 0) + [nn.Linear(d_in, d_out)]
        super().__init__(*layers)


class BoxEmbedding(nn.Module):
    """Position embedding of boxes: sines of (cx, cy, w, h), then an MLP (METHOD 2.5).

    Args:
        dim: width D of the result; each coordinate gets D / 2 sine channels (128 for D = 256).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = MLP(2 * dim, dim, dim)

    def forward(self, boxes: Tensor) -> Tensor:
        """Embed ``boxes`` (..., 4), XYXY normalised by the image size, as (..., D)."""
        center_size = box_convert(full_precision(boxes), "xyxy", "cxcywh")
        return self.mlp(sine_embedding(center_size, self.dim // 2).flatten(-2))


def sine_embedding(values: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Return sines and cosines of values in [0, 1] at ``dim / 2`` frequencies: (...) -> (..., dim)."""
    exponent = torch.arange(dim // 2, dtype=values.dtype, device=values.device) / (dim // 2)
    angle = values[..., None] * 2 * math.pi / temperature**exponent
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class AttentionLayer(nn.Module):
    """Multi-head attention, residual and LayerNorm (post-norm). Positions are added to queries and keys only."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim ({dim}) is not a multiple of num_heads ({num_heads})")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, x_pos: Tensor, memory: Tensor, memory_pos: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """Attend from ``x`` (B, M, D) to ``memory`` (B, N, D).

        Args:
            x_pos, memory_pos: position embeddings of the shapes of x and memory.
            visible: (B or 1, M or 1, N) bool, True if the query attends to the key; each row needs at least one True.
        """
        q, k, v = self._heads(x, x_pos, memory, memory_pos)
        mask = None if visible is None else visible.unsqueeze(1)
        return self._add(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def _heads(self, x: Tensor, x_pos: Tensor, memory: Tensor, memory_pos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (B, heads, M or N, D / heads)."""
        q, k, v = self.q_proj(x + x_pos), self.k_proj(memory + memory_pos), self.v_proj(memory)
        return self._split(q), self._split(k), self._split(v)

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        return self.norm(x + self.out_proj(attended.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two-layer feed-forward network, residual and LayerNorm (post-norm)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.mlp = MLP(dim, hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.mlp(x))


def init_transformer(module: nn.Module) -> None:
    """Initialise all Linear layers of a module as DETR does: Xavier-uniform weights and zero biases."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def unmask_empty_rows(visible: Tensor) -> Tensor:
    """Set rows without any True to True, since attention over no keys is undefined."""
    return visible | ~visible.any(dim=-1, keepdim=True)


def full_precision(x: Tensor) -> Tensor:
    """Convert to float32 unless the precision is higher; autocast may have computed x in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> torch.autocast:
    """Return a context that disables autocast, so that matrix products keep the precision of their inputs."""
    return torch.autocast(x.device.type, enabled=False)
