"""The image tokens of SAM's two-way transformer for many prompts on one image, without ever making them.

All prompts start from the same N image tokens, and a prompt changes them only through the few tokens of its own (T = 7,
seen by h = 8 heads). After any layer the image tokens of a prompt are therefore

    image token i  =  scale_i · shared_i  +  Σ_k weights_ki · values_k  +  constant

where `shared` belongs to the image alone, k runs over the h·T values of each layer so far, `weights` are their
attention weights, and the layer norms have become a scale per image token and maps of the values. The sum is never
carried out: whatever a projection does to `shared` is computed once per image (the tables below), and the rest meets
it as h·T values instead of N tokens.

Shapes: B prompts, T tokens a prompt, N image tokens, C channels, h heads of c channels.
"""

from dataclasses import dataclass

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn


@dataclass(frozen=True)
class SharedTokens:
    """The part of the image tokens that all prompts share, before the first or after some layer."""

    shared: Tensor
    """(N, C)."""
    constant: Tensor
    """(C,)."""
    value_maps: list[Tensor]
    """A layer's (h, c + 1, C) each: from the c channels of a value, and a one, to the value."""

    @staticmethod
    def of(image: Tensor) -> "SharedTokens":
        """Image tokens (N, C) before the first layer."""
        return SharedTokens(image, torch.zeros_like(image[0]), [])

    def add(self, attention: Attention) -> "SharedTokens":
        """After attention to a prompt's tokens, before the norm. It does not see means over channels: none is left.

        What is added to every token, the bias of the attention and the constant so far, is shared out among the heads:
        the attention weights of each head sum to one.
        """
        matrix = attention.out_proj.weight.T.unflatten(0, (attention.num_heads, -1))
        offset = ((attention.out_proj.bias + self.constant) / attention.num_heads).expand(attention.num_heads, 1, -1)
        value_maps = [*self.value_maps, torch.cat([matrix, offset], dim=1)]
        nothing = torch.zeros_like(self.constant)
        return SharedTokens(centred(self.shared), nothing, [centred(one) for one in value_maps])

    def norm(self, norm: nn.LayerNorm) -> "SharedTokens":
        """After `add`: what a layer norm does beside scaling each token."""
        value_maps = [one * norm.weight for one in self.value_maps]
        return SharedTokens(self.shared * norm.weight, norm.bias, value_maps)


@dataclass(frozen=True)
class ScoreTable:
    """Image tokens as keys or queries of an attention: what their scores against a prompt's tokens are made of."""

    weight: Tensor
    """(h, c, C): the projection."""
    scaled: Tensor
    """(h, c, N): the projection of `shared`."""
    fixed: Tensor
    """(h, c, N): the projection of position and constant, and its bias."""

    @staticmethod
    def of(tokens: SharedTokens, position: Tensor, projection: nn.Linear, heads: int) -> "ScoreTable":
        return ScoreTable(
            projection.weight.unflatten(0, (heads, -1)),
            _by_head(tokens.shared @ projection.weight.T, heads),
            _by_head(projection(tokens.constant + position), heads),
        )


@dataclass(frozen=True)
class ValueTable:
    """Image tokens as values of an attention."""

    weight: Tensor
    """(h, c, C): the projection."""
    scaled: Tensor
    """(h, N, c): the projection of `shared`."""
    constant: Tensor
    """(h·c,): the projection of the constant, and its bias."""

    @staticmethod
    def of(tokens: SharedTokens, projection: nn.Linear, heads: int) -> "ValueTable":
        return ValueTable(
            projection.weight.unflatten(0, (heads, -1)),
            _by_head(tokens.shared @ projection.weight.T, heads).transpose(1, 2).contiguous(),
            projection(tokens.constant),
        )


@dataclass(frozen=True)
class NormTable:
    """Image tokens before a layer norm."""

    value_map: Tensor
    """(h, c + 1, C): of the values just added."""
    energy: Tensor
    """(N,): squared norm of `shared`."""
    products: list[Tensor]
    """A layer's (h, c + 1, N) each: of its value map with `shared`."""
    norm: nn.LayerNorm

    @staticmethod
    def of(tokens: SharedTokens, norm: nn.LayerNorm) -> "NormTable":
        products = [one @ tokens.shared.T for one in tokens.value_maps]
        return NormTable(tokens.value_maps[-1], tokens.shared.square().sum(1), products, norm)


@dataclass(frozen=True)
class Added:
    """What one layer has added to the image tokens of B prompts."""

    weights: Tensor
    """(B, h·T, N)."""
    values: Tensor
    """(B, h·T, C)."""
    channels: Tensor
    """(B, h, T, c + 1): the channels of the values before their map, and a one."""


@dataclass(frozen=True)
class ImageTokens:
    """The image tokens of B prompts."""

    scale: Tensor
    """(B, 1, N)."""
    added: list[Added]
    """By each layer so far."""

    @staticmethod
    def untouched(image: Tensor) -> "ImageTokens":
        """Before the first layer, of any number of prompts, given the (N, C) that they share."""
        return ImageTokens(torch.ones_like(image[:, 0])[None, None], [])

    def scores(self, tokens: Tensor, table: ScoreTable) -> Tensor:
        """Scaled products (B, h, T, N) of prompts' queries (B, h, T, c) with the image tokens' keys, or the reverse."""
        batch, _, length, channels = tokens.shape
        tokens = tokens * channels**-0.5
        per_head = tokens.transpose(0, 1).flatten(1, 2)
        scores = per_head @ table.scaled
        scores.unflatten(1, (batch, length)).mul_(self.scale)
        scores.baddbmm_(per_head, table.fixed)
        scores = scores.unflatten(1, (batch, length)).transpose(0, 1).flatten(1, 2)
        folded = (tokens @ table.weight).flatten(1, 2)
        for added in self.added:
            scores.baddbmm_(folded @ added.values.transpose(1, 2), added.weights)
        return scores.unflatten(1, (-1, length))

    def sums(self, weights: Tensor, table: ValueTable) -> Tensor:
        """Sums (B, T, h·c) of the image tokens' values, weighted by (B, h, T, N) that sum to one over N."""
        sums = _product(weights * self.scale[:, None], table.scaled)
        for added in self.added:
            values = (weights.flatten(1, 2) @ added.weights.transpose(1, 2)) @ added.values
            sums = sums + values.unflatten(1, weights.shape[1:3]) @ table.weight.transpose(1, 2)
        return sums.transpose(1, 2).flatten(2) + table.constant

    def add_and_norm(self, weights: Tensor, channels: Tensor, table: NormTable) -> "ImageTokens":
        """Add weights (B, h, T, N), which sum to one over T, times the values of channels (B, h, T, c), and layer-norm.

        With the mean over channels removed from every part of the sum, the norm divides by the root of

            |scale · shared + Σ_k weights_k · values_k|² / C

        which takes the products of all parts with each other: those of `shared` from the table, those of the values
        among themselves from here.
        """
        channels = torch.cat([channels, torch.ones_like(channels[..., :1])], dim=-1)
        new = Added(weights.flatten(1, 2), (channels @ table.value_map).flatten(1, 2), channels)
        # Written over: the weights just computed, and those of this object, which nobody needs any more.
        parts = [*(Added(old.weights, centred(old.values), old.channels) for old in self.added), new]
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
            [Added(part.weights.mul_(scale), part.values * table.norm.weight, part.channels) for part in parts],
        )

    def select(self, index: Tensor | slice) -> "ImageTokens":
        """Those of some prompts."""
        added = [Added(one.weights[index], one.values[index], one.channels[index]) for one in self.added]
        return ImageTokens(self.scale[index], added)

    def cut(self, grid: tuple[int, int], window: tuple[int, int]) -> "ImageTokens":
        """The first rows and columns of a grid of tokens alone."""
        rows, columns = window

        def first(x: Tensor) -> Tensor:
            return x.unflatten(2, grid)[:, :, :rows, :columns].flatten(2)

        return ImageTokens(first(self.scale), [Added(first(a.weights), a.values, a.channels) for a in self.added])

    def project(self, shared: Tensor, matrix: Tensor, constant: Tensor) -> Tensor:
        """The image tokens times matrix (C, D), plus a constant (D,), made at last: (B, N, D).

        `shared` is (N, D) and already multiplied.
        """
        out = torch.addcmul(constant, self.scale.transpose(1, 2), shared)
        for added in self.added:
            out.baddbmm_(added.weights.transpose(1, 2), added.values @ matrix)
        return out


def centred(x: Tensor) -> Tensor:
    """Without the mean over channels, the last axis."""
    return x - x.mean(-1, keepdim=True)


def _product(tokens: Tensor, table: Tensor) -> Tensor:
    """(B, h, T, x) times a table (h, x, y) that all prompts share -> (B, h, T, y): a head's prompts all at once."""
    batch, _, length, _ = tokens.shape
    return (tokens.transpose(0, 1).flatten(1, 2) @ table).unflatten(1, (batch, length)).transpose(0, 1)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(N, h·c) -> (h, c, N)."""
    return x.T.unflatten(0, (heads, -1)).contiguous()
