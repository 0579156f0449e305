"""SAM's image encoder with bounded memory.

The ViT of `segment_anything` allocates three arrays of heads x 4096 x 4096 scores in every global attention: 2.5 GB for
ViT-B, 3.3 GB for ViT-H. Here the same blocks, with the same weights, compute attention for a few rows of queries at a
time.
"""

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn

FLOAT_BYTES = 4


def encode_image(encoder: nn.Module, image: Tensor, memory_budget: int) -> Tensor:
    """Compute the embedding of a normalized, padded image.

    Args:
        encoder: SAM's ViT, or another encoder, whose memory is not bounded.
        image: (1, 3, S, S) with S the encoder's image size.
        memory_budget: bytes for the scores of one attention step.

    Returns:
        (1, C, S/16, S/16), equal to `encoder(image)`.
    """
    if not isinstance(encoder, ImageEncoderViT):  # others are convolutional or have windows, and need little memory
        return encoder(image)
    x = encoder.patch_embed(image)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        if block.window_size > 0:
            x = block(x)
        else:
            x = x + _global_attention(block.attn, block.norm1(x), memory_budget)
            x = x + block.mlp(block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def _global_attention(attention: Attention, x: Tensor, memory_budget: int) -> Tensor:
    """Compute attention with decomposed relative positions over x (1, H, W, C), some rows at a time."""
    _, height, width, channels = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).reshape(height * width, 3, heads, -1).permute(1, 2, 0, 3)
    query, key, value = (part.contiguous() for part in qkv)  # each (heads, H·W, c)
    out = x.new_empty((heads, height * width, channels // heads), dtype=query.dtype)
    rows = max(1, memory_budget // (FLOAT_BYTES * heads * width * height * width))
    for start in range(0, height, rows):
        span = slice(start * width, min(start + rows, height) * width)
        bias = _position_bias(attention, query, start, span, (height, width)) if attention.use_rel_pos else None
        out[:, span] = F.scaled_dot_product_attention(
            query[None, :, span], key[None], value[None], attn_mask=bias, scale=attention.scale
        )[0]
    return attention.proj(out.transpose(0, 1).reshape(1, height, width, channels))


def _position_bias(attention: Attention, query: Tensor, start: int, span: slice, size: tuple[int, int]) -> Tensor:
    """Return the relative position bias of the queries of some rows, (1, heads, queries, H·W)."""
    height, width = size
    query = query[:, span].unflatten(1, (-1, width))
    along_rows = get_rel_pos(height, height, attention.rel_pos_h)[start : start + query.shape[1]]
    along_columns = get_rel_pos(width, width, attention.rel_pos_w)
    # Contiguous: otherwise their much larger sum would inherit the strides and be copied.
    by_row = torch.einsum("nhwc,hkc->nhwk", query, along_rows).contiguous()
    by_column = torch.einsum("nhwc,wkc->nhwk", query, along_columns).contiguous()
    return (by_row[..., :, None] + by_column[..., None, :]).flatten(3).flatten(1, 2)[None]
