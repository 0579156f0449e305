"""Implicit image tokens of SAM's two-way transformer for many prompts on one image.

All prompts start from the same N image tokens, and a prompt updates them only through its own T = 7 tokens and h = 8
heads. After any layer the image tokens of a prompt are therefore

    image token i  =  scale_i · shared_i  +  Σ_k weights_ki · values_k  +  constant

where `shared` depends on the image alone, k runs over the h·T values of each previous layer, `weights` are attention
weights, and layer norms are represented by a scale per image token and by linear maps of the values. The sum is never
evaluated: projections of `shared` are computed once per image (the tables below), and projections of the rest are
computed on h·T values instead of N tokens.

Shapes: B prompts, T tokens per prompt, N image tokens, C channels, h heads of c channels.
"""

from dataclasses import dataclass

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn


@dataclass(frozen=True)
class SharedTokens:
    """Part of the image tokens that is shared by all prompts, before the first layer or after a layer."""

    shared: Tensor  # (N, C)
    constant: Tensor  # (C,)
    value_maps: list[Tensor]  # per layer (h, c + 1, C): linear map to a value from its c channels and a constant one

    def add(self, attention: Attention) -> "SharedTokens":
        """Return the tokens after attention to a prompt's tokens, before the norm, with the mean over channels removed.

        The norm removes the mean anyway. The bias of the attention and the previous constant are added to every token;
        they are divided among the heads, because the attention weights of each head sum to one.
        """
        matrix = attention.out_proj.weight.T.unflatten(0, (attention.num_heads, -1))
        offset = ((attention.out_proj.bias + self.constant) / attention.num_heads).expand(attention.num_heads, 1, -1)
        value_maps = [*self.value_maps, torch.cat([matrix, offset], dim=1)]
        nothing = torch.zeros_like(self.constant)
        return SharedTokens(centred(self.shared), nothing, [centred(value_map) for value_map in value_maps])

    def norm(self, norm: nn.LayerNorm) -> "SharedTokens":
        """Return the tokens after `add` and a layer norm, except for its scale per token."""
        value_maps = [value_map * norm.weight for value_map in self.value_maps]
        return SharedTokens(self.shared * norm.weight, norm.bias, value_maps)


@dataclass(frozen=True)
class ScoreTable:
    """Image tokens projected to keys or queries of an attention."""

    weight: Tensor  # (h, c, C): the projection
    scaled: Tensor  # (h, c, N): the projection of `shared`
    fixed: Tensor  # (h, c, N): the projection of position and constant, and its bias

    @staticmethod
    def of(tokens: SharedTokens, position: Tensor, projection: nn.Linear, heads: int) -> "ScoreTable":
        return ScoreTable(
            projection.weight.unflatten(0, (heads, -1)),
            _by_head(tokens.shared @ projection.weight.T, heads),
            _by_head(projection(tokens.constant + position), heads),
        )


@dataclass(frozen=True)
class ValueTable:
    """Image tokens projected to values of an attention."""

    weight: Tensor  # (h, c, C): the projection
    scaled: Tensor  # (h, N, c): the projection of `shared`
    constant: Tensor  # (h·c,): the projection of the constant, and its bias

    @staticmethod
    def of(tokens: SharedTokens, projection: nn.Linear, heads: int) -> "ValueTable":
        return ValueTable(
            projection.weight.unflatten(0, (heads, -1)),
            _by_head(tokens.shared @ projection.weight.T, heads).transpose(1, 2).contiguous(),
            projection(tokens.constant),
        )


@dataclass(frozen=True)
class NormTable:
    """Inner products of the image tokens, for a layer norm."""

    value_map: Tensor  # (h, c + 1, C): of the last layer's values
    energy: Tensor  # (N,): squared norm of `shared`
    products: list[Tensor]  # per layer (h, c + 1, N): of its value map with `shared`
    norm: nn.LayerNorm

    @staticmethod
    def of(tokens: SharedTokens, norm: nn.LayerNorm) -> "NormTable":
        products = [value_map @ tokens.shared.T for value_map in tokens.value_maps]
        return NormTable(tokens.value_maps[-1], tokens.shared.square().sum(1), products, norm)


@dataclass(frozen=True)
class Update:
    """Residual update of the image tokens by one layer, for B prompts."""

    weights: Tensor  # (B, h·T, N)
    values: Tensor  # (B, h·T, C)
    channels: Tensor  # (B, h, T, c + 1): the values before their map, and a constant one


@dataclass(frozen=True)
class ImageTokens:
    """Image tokens of B prompts; before the first layer they have scale 1 and no updates."""

    scale: Tensor  # (B, 1, N)
    updates: list[Update]  # one per previous layer

    def scores(self, tokens: Tensor, table: ScoreTable) -> Tensor:
        """Return attention scores (B, h, T, N) of prompt tokens (B, h, T, c) with the image tokens, scaled."""
        batch, _, length, channels = tokens.shape
        tokens = tokens * channels**-0.5
        per_head = tokens.transpose(0, 1).flatten(1, 2)
        scores = per_head @ table.scaled
        scores.unflatten(1, (batch, length)).mul_(self.scale)
        scores.baddbmm_(per_head, table.fixed)
        scores = scores.unflatten(1, (batch, length)).transpose(0, 1).flatten(1, 2)
        folded = (tokens @ table.weight).flatten(1, 2)
        for update in self.updates:
            scores.baddbmm_(folded @ update.values.transpose(1, 2), update.weights)
        return scores.unflatten(1, (-1, length))

    def sums(self, weights: Tensor, table: ValueTable) -> Tensor:
        """Return sums (B, T, h·c) of the image tokens' values, with weights (B, h, T, N) that sum to one over N."""
        sums = _product(weights * self.scale[:, None], table.scaled)
        for update in self.updates:
            values = (weights.flatten(1, 2) @ update.weights.transpose(1, 2)) @ update.values
            sums = sums + values.unflatten(1, weights.shape[1:3]) @ table.weight.transpose(1, 2)
        return sums.transpose(1, 2).flatten(2) + table.constant

    def add_and_norm(self, weights: Tensor, channels: Tensor, table: NormTable) -> "ImageTokens":
        """Add weights (B, h, T, N), which sum to one over T, times values of channels (B, h, T, c); then layer-norm.

        All terms of the sum have zero mean over channels, so the norm divides by the square root of

            |scale · shared + Σ_k weights_k · values_k|² / C

        whose inner products with `shared` come from the table. Overwrites the weights in place, including those of
        this object.
        """
        channels = torch.cat([channels, torch.ones_like(channels[..., :1])], dim=-1)
        new = Update(weights.flatten(1, 2), (channels @ table.value_map).flatten(1, 2), channels)
        parts = [*(Update(old.weights, centred(old.values), old.channels) for old in self.updates), new]
        energy = self.scale.square() * table.energy
        for i, part in enumerate(parts):
            products = _product(part.channels, table.products[i]).flatten(1, 2) * self.scale
            for other in parts[:i]:
                products.baddbmm_(part.values @ other.values.transpose(1, 2), other.weights)
            products.baddbmm_(part.values @ part.values.transpose(1, 2), part.weights, beta=2)
            energy = energy + products.mul_(part.weights).sum(1, keepdim=True)
        scale = (energy / part.values.shape[-1] + table.norm.eps).rsqrt()
        return ImageTokens(
            self.scale * scale,
            [Update(part.weights.mul_(scale), part.values * table.norm.weight, part.channels) for part in parts],
        )

    def select(self, index: Tensor | slice, grid: tuple[int, int], window: tuple[int, int]) -> "ImageTokens":
        """Return the tokens of some of the prompts, and of these the first (rows, columns) of the grid."""
        rows, columns = window

        def crop(x: Tensor) -> Tensor:
            return x[index].unflatten(2, grid)[:, :, :rows, :columns].flatten(2)

        updates = [Update(crop(u.weights), u.values[index], u.channels[index]) for u in self.updates]
        return ImageTokens(crop(self.scale), updates)

    def project(self, shared: Tensor, matrix: Tensor, constant: Tensor) -> Tensor:
        """Evaluate the image tokens times a matrix (C, D) plus a constant (D,), (B, N, D).

        `shared` (N, D) are the shared tokens times the matrix.
        """
        out = torch.addcmul(constant, self.scale.transpose(1, 2), shared)
        for update in self.updates:
            out.baddbmm_(update.weights.transpose(1, 2), update.values @ matrix)
        return out


def centred(x: Tensor) -> Tensor:
    """Subtract the mean over channels, the last axis."""
    return x - x.mean(-1, keepdim=True)


def _product(tokens: Tensor, table: Tensor) -> Tensor:
    """Multiply (B, h, T, x) by a table (h, x, y) shared by all prompts -> (B, h, T, y), one product per head."""
    batch, _, length, _ = tokens.shape
    return (tokens.transpose(0, 1).flatten(1, 2) @ table).unflatten(1, (batch, length)).transpose(0, 1)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """Reshape (N, h·c) -> (h, c, N)."""
    return x.T.unflatten(0, (heads, -1)).contiguous()
