"""SAM's mask decoder for thousands of single-point prompts on one image.

Computes the same as `MaskDecoder` of `segment_anything`. There, each prompt has its own copy of the N = 4096 image
tokens in every projection of the two-way transformer. Here the image tokens are represented by a shared part and the
updates of each prompt (`tokens`). Masks are computed only for prompts that the caller selects: the predicted IoU
depends on a prompt's own tokens alone.

Shapes: B prompts, T tokens per prompt, N image tokens on a grid of H x W, C channels, h heads of c channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

from proposal_cache.generators.sam.tokens import ImageTokens, NormTable, ScoreTable, SharedTokens, ValueTable


@dataclass(frozen=True)
class _LayerTables:
    keys: ScoreTable
    values: ValueTable
    queries: ScoreTable
    norm: NormTable


@dataclass(frozen=True)
class ImageTables:
    """Everything that depends on the image alone."""

    initial: ImageTokens
    layers: list[_LayerTables]
    final_keys: ScoreTable
    final_values: ValueTable
    window: tuple[int, int]  # (rows, columns) of the image tokens for which masks are computed
    pixels: Tensor  # (rows·columns, C): shared part of these tokens after the first convolution of the upscaling
    pixel_constant: Tensor  # (C,)


@dataclass(frozen=True)
class DecodedPrompts:
    """Prompts after the transformer, before upscaling to masks."""

    predicted_iou: Tensor  # (B, 3): predicted IoU of each prompt's three masks
    mask_weights: Tensor  # (B, 3, C/8): weights that map a pixel's upscaled embedding to the logits of the three masks
    image: ImageTokens


class PromptDecoder:
    """Decoder of point prompts to predicted IoUs and mask logits, in float32, with the weights of a model."""

    def __init__(self, sam: Sam) -> None:
        self.prompt_encoder = sam.prompt_encoder
        self.decoder = sam.mask_decoder
        self.masks_per_prompt: int = sam.mask_decoder.num_multimask_outputs  # of a point: whole, part and subpart
        self.grid_size: tuple[int, int] = sam.prompt_encoder.image_embedding_size
        self.mask_size = (4 * self.grid_size[0], 4 * self.grid_size[1])  # (height, width) of the logits of all tokens

    @property
    def bytes_per_prompt(self) -> int:
        """Approximate memory per prompt of a batch.

        The attention weights of two layers and three temporary arrays of their size; unless prompts are upscaled one
        by one, also the embedding of 16 pixels per token, before and after an activation.
        """
        image_tokens = self.grid_size[0] * self.grid_size[1]
        tokens = self.decoder.num_mask_tokens + 3  # IoU token, point, padding point
        numbers = 5 * image_tokens * tokens * self.decoder.transformer.num_heads
        if self._upscales_at_once:
            numbers += 6 * image_tokens * self.decoder.transformer_dim
        return torch.float32.itemsize * numbers

    def compile(self) -> None:
        """Compile the decoder with `torch.compile`."""
        self.decode = torch.compile(self.decode)  # type: ignore[method-assign]
        self._upscale = torch.compile(self._upscale)  # type: ignore[method-assign]

    def tables(self, image_embedding: Tensor, mask_size: tuple[int, int]) -> ImageTables:
        """Compute everything that depends on the image alone.

        Args:
            image_embedding: (1, C, H, W) output of the image encoder.
            mask_size: (height, width), multiples of 4, to which mask logits are computed, because the rest is padding.
        """
        transformer = self.decoder.transformer
        heads = transformer.num_heads
        image = (image_embedding + self.prompt_encoder.no_mask_embed.weight[..., None, None])[0].flatten(1).T
        position = self.prompt_encoder.get_dense_pe()[0].flatten(1).T
        tokens = SharedTokens(image, torch.zeros_like(image[0]), [])
        layers = []
        for layer in transformer.layers:
            to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            keys = ScoreTable.of(tokens, position, to_image.k_proj, heads)
            values = ValueTable.of(tokens, to_image.v_proj, heads)
            queries = ScoreTable.of(tokens, position, to_tokens.q_proj, heads)
            tokens = tokens.add(to_tokens)
            layers.append(_LayerTables(keys, values, queries, NormTable.of(tokens, layer.norm4)))
            tokens = tokens.norm(layer.norm4)
        attention = transformer.final_attn_token_to_image
        convolution = self.decoder.output_upscaling[0]
        matrix = _pixel_matrix(convolution)
        window = (mask_size[0] // 4, mask_size[1] // 4)
        shared = tokens.shared.unflatten(0, self.grid_size)[: window[0], : window[1]].flatten(0, 1)
        return ImageTables(
            initial=ImageTokens(torch.ones_like(image[:, 0])[None, None], []),
            layers=layers,
            final_keys=ScoreTable.of(tokens, position, attention.k_proj, heads),
            final_values=ValueTable.of(tokens, attention.v_proj, heads),
            window=window,
            pixels=shared @ matrix,
            pixel_constant=tokens.constant @ matrix + convolution.bias.repeat(4),
        )

    def decode(self, tables: ImageTables, points: Tensor) -> DecodedPrompts:
        """Run the two-way transformer for foreground points (B, 2), XY in pixels of the encoder's input."""
        transformer = self.decoder.transformer
        prompt = self._prompt_tokens(points)
        tokens, image = prompt, tables.initial
        for layer, layer_tables in zip(transformer.layers, tables.layers, strict=True):
            tokens, image = _two_way_layer(layer, layer_tables, prompt, tokens, image)
        # Token 0 predicts the IoU, token 1 the mask of single-mask output, which is not used.
        used = [0, *range(2, self.decoder.num_mask_tokens + 1)]
        tokens, prompt = tokens[:, used], prompt[:, used]
        attention = transformer.final_attn_token_to_image
        attended = _attend_to_image(attention, tokens + prompt, image, tables.final_keys, tables.final_values)
        tokens = transformer.norm_final_attn(tokens + attended)
        mask_mlps = self.decoder.output_hypernetworks_mlps[1:]
        return DecodedPrompts(
            predicted_iou=self.decoder.iou_prediction_head(tokens[:, 0])[:, 1:],
            mask_weights=torch.stack([mlp(tokens[:, i]) for i, mlp in enumerate(mask_mlps, start=1)], dim=1),
            image=image,
        )

    def mask_logits(self, tables: ImageTables, prompts: DecodedPrompts, keep: Tensor) -> Tensor:
        """Compute the low-resolution logits (n, h, w) of the n masks where `keep` (B, 3) is true, ordered by prompt."""
        selected = keep.any(dim=1).nonzero()[:, 0]
        if len(selected) == 0:
            return torch.zeros((0, 4 * tables.window[0], 4 * tables.window[1]), device=keep.device)
        if self._upscales_at_once:
            return self._all_masks(tables, prompts, selected)[keep[selected]]
        singles = [slice(i, i + 1) for i in selected.tolist()]
        return torch.cat([self._all_masks(tables, prompts, single)[keep[single]] for single in singles])

    @property
    def _upscales_at_once(self) -> bool:
        """Whether all prompts are upscaled together. On a CPU, one by one is faster, because it fits in the cache."""
        return self.decoder.iou_token.weight.device.type != "cpu"

    def _prompt_tokens(self, points: Tensor) -> Tensor:
        """Return SAM's learned output tokens, then the embeddings of the point and of the padding, (B, T, C)."""
        labels = torch.ones((len(points), 1), dtype=torch.int, device=points.device)
        sparse, _ = self.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
        output = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        return torch.cat([output.expand(len(points), -1, -1), sparse], dim=1)

    def _all_masks(self, tables: ImageTables, prompts: DecodedPrompts, index: Tensor | slice) -> Tensor:
        """Compute the mask logits (b, 3, h, w) of some prompts."""
        height, width = tables.window
        image = prompts.image.select(index, self.grid_size, tables.window)
        logits = self._upscale(image, prompts.mask_weights[index], tables.pixels, tables.pixel_constant)
        # Axes: (row, column) of the token, of the pixel in its 2x2 block, and of the pixel in that pixel's block.
        logits = logits.unflatten(-1, (height, width, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return logits.reshape(len(logits), -1, 4 * height, 4 * width)

    def _upscale(self, image: ImageTokens, mask_weights: Tensor, pixels: Tensor, constant: Tensor) -> Tensor:
        """Compute the mask logits (b, 3, 16·n) of b prompts in the 16 pixels of each of n image tokens.

        A transposed convolution with stride equal to kernel size maps each token to its own block of pixels, as a
        matrix product over channels. All arguments are tensors, so that one compiled version works for all sizes.
        """
        first, norm, first_activation, second, second_activation = self.decoder.output_upscaling
        x = image.project(pixels, _pixel_matrix(first), constant)
        x = x.unflatten(-1, (4, -1))
        x = first_activation(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        x = second_activation(F.linear(x, _pixel_matrix(second).T, second.bias.repeat(4)))
        return mask_weights @ x.reshape(len(x), -1, second.out_channels).transpose(1, 2)


def _two_way_layer(
    layer: TwoWayAttentionBlock, tables: _LayerTables, prompt: Tensor, tokens: Tensor, image: ImageTokens
) -> tuple[Tensor, ImageTokens]:
    """Apply one layer to the prompts' tokens (B, T, C), whose positional embedding is `prompt`, and image tokens."""
    if layer.skip_first_layer_pe:
        tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
    else:
        query = tokens + prompt
        tokens = tokens + layer.self_attn(q=query, k=query, v=tokens)
    tokens = layer.norm1(tokens)
    attended = _attend_to_image(layer.cross_attn_token_to_image, tokens + prompt, image, tables.keys, tables.values)
    tokens = layer.norm2(tokens + attended)
    tokens = layer.norm3(tokens + layer.mlp(tokens))

    attention = layer.cross_attn_image_to_token
    keys = _split_heads(attention.k_proj(tokens + prompt), attention)
    values = _split_heads(attention.v_proj(tokens), attention)
    weights = image.scores(keys, tables.queries).softmax(dim=2)
    return tokens, image.add_and_norm(weights, values, tables.norm)


def _attend_to_image(
    attention: Attention, tokens: Tensor, image: ImageTokens, keys: ScoreTable, values: ValueTable
) -> Tensor:
    """Compute token-to-image attention of (B, T, C)."""
    queries = _split_heads(attention.q_proj(tokens), attention)
    weights = image.scores(queries, keys).softmax(dim=-1)
    return attention.out_proj(image.sums(weights, values))


def _split_heads(x: Tensor, attention: Attention) -> Tensor:
    """Reshape (B, T, h·c) -> (B, h, T, c)."""
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def _pixel_matrix(convolution: nn.ConvTranspose2d) -> Tensor:
    """Return the 2x2 transposed convolution of stride 2 as a matrix from a token to its four pixels, (in, 4·out)."""
    return convolution.weight.permute(0, 2, 3, 1).flatten(1)
