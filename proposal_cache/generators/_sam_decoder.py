"""SAM's mask decoder for thousands of single-point prompts on one image.

The same function of the same weights as `segment_anything`'s `MaskDecoder`, in another order. There, every prompt
carries its own copy of the N = 4096 image tokens through every projection of the two-way transformer. Here:

- Before the first layer has written to them, the image tokens are the same for all prompts, so everything computed
  from them alone (their sum with the dense prompt, and the first layer's key, value and query projections) is computed
  once per image.
- Afterwards they differ, but a prompt has only T = 7 tokens of its own. A projection W of the N image tokens that only
  ever meets those few tokens is moved to their side: q·(W x) = (Wᵀ q)·x, and Σ pᵢ (W xᵢ) = W (Σ pᵢ xᵢ).
- The predicted IoU depends on the tokens alone, so masks are upscaled for the prompts that the caller keeps.

Shapes below: B prompts, T tokens a prompt, N image tokens, C channels, h heads of c channels (d = h·c).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

FLOAT_BYTES = 4


@dataclass(frozen=True)
class SharedTokens:
    """What all prompts of one image share."""

    tokens: Tensor
    """(N, C): the image embedding with the embedding of 'no mask given' added."""
    position: Tensor
    """(N, C): positional encoding of the image tokens."""
    first_keys: Tensor
    """(h, c, N): keys of the first token-to-image attention."""
    first_values: Tensor
    """(h, N, c): values of the first token-to-image attention."""
    first_queries: Tensor
    """(h, c, N): queries of the first image-to-token attention."""


@dataclass(frozen=True)
class DecodedPrompts:
    """A batch of prompts after the transformer, before any mask is made."""

    predicted_iou: Tensor
    """(B, 3) float32: the quality that SAM predicts for the three masks of each prompt."""
    image_tokens: Tensor
    """(B, N, C): each prompt's image tokens."""
    mask_weights: Tensor
    """(B, 3, C/8): the weights that turn a pixel's upscaled embedding into the three masks' logits."""


class PromptDecoder:
    """Predicted IoU and mask logits of point prompts, given an image embedding.

    Args:
        sam: the model; its prompt encoder and mask decoder are used as they are, with their own weights.
    """

    def __init__(self, sam: Sam) -> None:
        self.prompt_encoder = sam.prompt_encoder
        self.decoder = sam.mask_decoder
        self.grid_size: tuple[int, int] = sam.prompt_encoder.image_embedding_size

    @property
    def masks_per_prompt(self) -> int:
        """Masks that SAM proposes for a point: whole, part and subpart."""
        return int(self.decoder.num_multimask_outputs)

    @property
    def mask_size(self) -> tuple[int, int]:
        """(height, width) of the mask logits."""
        return 4 * self.grid_size[0], 4 * self.grid_size[1]

    @property
    def bytes_per_prompt(self) -> int:
        """Roughly the memory that one prompt of a batch needs at the worst moment of `decode` or `mask_logits`."""
        image_tokens = self.grid_size[0] * self.grid_size[1] * self.decoder.transformer_dim * FLOAT_BYTES
        # The tokens, their sum with the position, the next layer's; attention weights are about half of one of these.
        return 5 * image_tokens

    def compile(self) -> None:
        """Run from now on through `torch.compile`."""
        self.decode = torch.compile(self.decode)  # type: ignore[method-assign]
        self._upscale = torch.compile(self._upscale)  # type: ignore[method-assign]

    def share(self, image_embedding: Tensor) -> SharedTokens:
        """Compute once what all prompts share, from the image encoder's output (1, C, H, W)."""
        no_mask = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        tokens = (image_embedding + no_mask)[0].flatten(1).T.contiguous()
        position = self.prompt_encoder.get_dense_pe()[0].flatten(1).T.contiguous()
        first = self.decoder.transformer.layers[0]
        to_image, to_tokens = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        return SharedTokens(
            tokens=tokens,
            position=position,
            first_keys=_split_heads(to_image.k_proj(tokens + position), to_image).permute(1, 2, 0).contiguous(),
            first_values=_split_heads(to_image.v_proj(tokens), to_image).transpose(0, 1).contiguous(),
            first_queries=_split_heads(to_tokens.q_proj(tokens + position), to_tokens).permute(1, 2, 0).contiguous(),
        )

    def decode(self, shared: SharedTokens, points: Tensor) -> DecodedPrompts:
        """Run the two-way transformer for foreground points (B, 2), XY in pixels of the encoder's input."""
        prompt = self._prompt_tokens(points)
        transformer = self.decoder.transformer
        first, *later = transformer.layers
        tokens, image = _first_layer(first, prompt, shared)
        for layer in later:
            tokens, image = _later_layer(layer, prompt, tokens, image, shared.position)
        # The first token predicts the IoU, the next ones the masks, of which SAM's first is for single-mask output.
        used = [0, *range(2, self.decoder.num_mask_tokens + 1)]
        tokens, prompt = tokens[:, used], prompt[:, used]
        attention = transformer.final_attn_token_to_image
        tokens = tokens + _attend_to_image(attention, tokens + prompt, image + shared.position, image)
        tokens = transformer.norm_final_attn(tokens)
        mask_mlps = self.decoder.output_hypernetworks_mlps[1:]
        return DecodedPrompts(
            predicted_iou=self.decoder.iou_prediction_head(tokens[:, 0])[:, 1:].float(),
            image_tokens=image,
            mask_weights=torch.stack([mlp(tokens[:, i]) for i, mlp in enumerate(mask_mlps, start=1)], dim=1),
        )

    def mask_logits(self, prompts: DecodedPrompts, keep: Tensor) -> Tensor:
        """Low-resolution logits (n, 4·H, 4·W) float32 of the n masks where `keep` (B, 3) is true, prompt by prompt."""
        wanted = keep.any(dim=1).nonzero()[:, 0]
        if len(wanted) == 0:
            return torch.zeros((0, *self.mask_size), device=keep.device)
        # On a CPU one prompt at a time: its upscaled embedding then stays in the cache.
        chunks = wanted.split(1 if wanted.device.type == "cpu" else len(wanted))
        return torch.cat([self._upscale(prompts, chunk)[keep[chunk]] for chunk in chunks])

    def _prompt_tokens(self, points: Tensor) -> Tensor:
        """(B, T, C): SAM's learned output tokens, then the embedding of the point and of the padding."""
        labels = torch.ones((len(points), 1), dtype=torch.int, device=points.device)
        sparse, _ = self.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
        output = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        return torch.cat([output.expand(len(points), -1, -1), sparse], dim=1)

    def _upscale(self, prompts: DecodedPrompts, index: Tensor) -> Tensor:
        """Mask logits (len(index), 3, 4·H, 4·W) of some prompts.

        A transposed convolution whose stride is its kernel size gives every token a block of pixels of its own: it is
        a matrix product over channels. The pixels are put in their places at the end, when each is a number.
        """
        first, norm, first_activation, second, second_activation = self.decoder.output_upscaling
        height, width = self.grid_size
        x = prompts.image_tokens[index]
        x = F.linear(x, _pixel_matrix(first), first.bias.repeat(4)).unflatten(-1, (4, -1))
        x = first_activation(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        x = second_activation(F.linear(x, _pixel_matrix(second), second.bias.repeat(4)))
        x = x.reshape(len(index), -1, second.out_channels)
        logits = prompts.mask_weights[index] @ x.transpose(1, 2)
        # (row, column) of the token, then of the pixel in its 2x2 block, then of the pixel in that one's.
        logits = logits.reshape(len(index), -1, height, width, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return logits.reshape(len(index), -1, 4 * height, 4 * width).float()


def _first_layer(layer: TwoWayAttentionBlock, prompt: Tensor, shared: SharedTokens) -> tuple[Tensor, Tensor]:
    """The first layer: its attentions meet image tokens that all prompts share. Returns tokens, image tokens."""
    tokens = layer.norm1(layer.self_attn(q=prompt, k=prompt, v=prompt))
    tokens = layer.norm2(tokens + _attend_to_shared_image(layer.cross_attn_token_to_image, tokens + prompt, shared))
    tokens = layer.norm3(tokens + layer.mlp(tokens))

    attention = layer.cross_attn_image_to_token
    keys = _split_heads(attention.k_proj(tokens + prompt), attention) * _scale(attention)
    batch, length = keys.shape[:2]
    scores = keys.permute(2, 0, 1, 3).flatten(1, 2) @ shared.first_queries
    scores = scores.unflatten(1, (batch, length)).transpose(0, 1)
    image = _add_from_tokens(attention, shared.tokens.expand(batch, -1, -1), scores, tokens)
    return tokens, layer.norm4(image)


def _later_layer(
    layer: TwoWayAttentionBlock, prompt: Tensor, tokens: Tensor, image: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """A layer whose image tokens (B, N, C) are each prompt's own. Returns tokens, image tokens."""
    query = tokens + prompt
    tokens = layer.norm1(tokens + layer.self_attn(q=query, k=query, v=tokens))
    placed = image + position
    tokens = layer.norm2(tokens + _attend_to_image(layer.cross_attn_token_to_image, tokens + prompt, placed, image))
    tokens = layer.norm3(tokens + layer.mlp(tokens))

    attention = layer.cross_attn_image_to_token
    keys = _split_heads(attention.k_proj(tokens + prompt), attention) * _scale(attention)
    query_weight, query_bias = attention.q_proj.weight, attention.q_proj.bias
    folded = _fold(keys, query_weight)
    bias = torch.einsum("bthc,hc->bht", keys, query_bias.unflatten(0, keys.shape[2:]))
    scores = torch.baddbmm(bias.flatten(1)[..., None], folded, placed.transpose(1, 2))
    image = _add_from_tokens(attention, image, scores.unflatten(1, (-1, keys.shape[1])), tokens)
    return tokens, layer.norm4(image)


def _attend_to_shared_image(attention: Attention, query: Tensor, shared: SharedTokens) -> Tensor:
    """Token-to-image attention of queries (B, T, C) over keys and values projected once for all prompts."""
    q = _split_heads(attention.q_proj(query), attention) * _scale(attention)
    batch, length = q.shape[:2]
    weights = (q.permute(2, 0, 1, 3).flatten(1, 2) @ shared.first_keys).softmax(dim=-1)
    out = (weights @ shared.first_values).unflatten(1, (batch, length)).permute(1, 2, 0, 3)
    return attention.out_proj(out.flatten(2))


def _attend_to_image(attention: Attention, query: Tensor, placed: Tensor, image: Tensor) -> Tensor:
    """Token-to-image attention of queries (B, T, C) over image tokens (B, N, C), `placed` with their position.

    The key projection is folded into the queries (its bias adds the same to all scores of a query, and a softmax does
    not see that); the value projection is applied to the T weighted sums instead of the N image tokens.
    """
    q = _split_heads(attention.q_proj(query), attention) * _scale(attention)
    weights = (_fold(q, attention.k_proj.weight) @ placed.transpose(1, 2)).softmax(dim=-1)
    sums = (weights @ image).unflatten(1, (attention.num_heads, -1))
    value_weight = attention.v_proj.weight.unflatten(0, (attention.num_heads, -1))
    out = torch.einsum("bhtC,hcC->bthc", sums, value_weight).flatten(2) + attention.v_proj.bias
    return attention.out_proj(out)


def _add_from_tokens(attention: Attention, image: Tensor, scores: Tensor, tokens: Tensor) -> Tensor:
    """Image tokens (B, N, C) plus image-to-token attention with scores (B, h, T, N) and values from tokens (B, T, C).

    The output projection is folded into the values. Its bias is shared out among the heads: the weights of each head
    sum to one.
    """
    values = _split_heads(attention.v_proj(tokens), attention)
    values = _fold(values, attention.out_proj.weight.T) + attention.out_proj.bias / attention.num_heads
    weights = scores.softmax(dim=2).flatten(1, 2)
    return torch.baddbmm(image, weights.transpose(1, 2), values)


def _split_heads(x: Tensor, attention: Attention) -> Tensor:
    """(..., d) -> (..., h, c)."""
    return x.unflatten(-1, (attention.num_heads, -1))


def _fold(x: Tensor, weight: Tensor) -> Tensor:
    """(B, T, h, c) times each head's rows of weight (d, C) -> (B, h·T, C)."""
    heads = weight.unflatten(0, x.shape[2:])
    return torch.einsum("bthc,hcC->bhtC", x, heads).flatten(1, 2)


def _scale(attention: Attention) -> float:
    return float((attention.internal_dim // attention.num_heads) ** -0.5)


def _pixel_matrix(convolution: nn.ConvTranspose2d) -> Tensor:
    """(4·out, in): a 2x2 transposed convolution of stride 2 as a linear map from a token to its four pixels."""
    return convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
