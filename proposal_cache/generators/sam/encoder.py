"""SAM's image encoder with bounded memory.

The ViT of `segment_anything` allocates three arrays of heads x 4096 x 4096 scores in every global attention: 2.5 GB for
ViT-B, 3.3 GB for ViT-H. Here the same blocks, with the same weights, compute attention for a few rows of queries, or a
few rows of windows, at a time. Projections of the tokens that pad the last windows, a fifth of all tokens, are not
computed: keys and values of padding are the bias, and its queries are not needed.
"""

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn


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
        normalized = block.norm1(x)
        if block.window_size > 0:
            x = x + _window_attention(block.attn, normalized, block.window_size, memory_budget)
        else:
            x = x + _global_attention(block.attn, normalized, memory_budget)
        x = x + block.mlp(block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def _window_attention(attention: Attention, x: Tensor, window: int, memory_budget: int) -> Tensor:
    """Compute attention inside windows over x (1, H, W, C), some rows of windows at a time."""
    scores = torch.float32.itemsize * attention.num_heads * -(-x.shape[2] // window) * window**4  # of a row of windows
    rows = window * max(1, memory_budget // scores)
    return torch.cat([_attend_in_windows(attention, part, window) for part in x.split(rows, dim=1)], dim=1)


def _attend_in_windows(attention: Attention, x: Tensor, window: int) -> Tensor:
    """Compute attention inside windows over x (1, h, W, C)."""
    _, height, width, channels = x.shape
    rows, columns = -(-height // window), -(-width // window)
    padded = attention.qkv(x.new_zeros(1, 1, 1, channels)).repeat(1, rows * window, columns * window, 1)
    padded[:, :height, :width] = attention.qkv(x)
    qkv = padded.view(rows, window, columns, window, 3, attention.num_heads, -1).permute(4, 0, 2, 5, 1, 3, 6)
    query, key, value = qkv.reshape(3, rows * columns, attention.num_heads, window * window, -1)
    bias = _position_bias(attention, query, 0, (window, window)) if attention.use_rel_pos else None
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attention.scale)
    out = out.view(rows, columns, attention.num_heads, window, window, -1).permute(0, 3, 1, 4, 2, 5)
    return attention.proj(out.reshape(1, rows * window, columns * window, channels)[:, :height, :width])


def _global_attention(attention: Attention, x: Tensor, memory_budget: int) -> Tensor:
    """Compute attention with decomposed relative positions over x (1, H, W, C), some rows at a time."""
    _, height, width, channels = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).reshape(height * width, 3, heads, -1).permute(1, 2, 0, 3)
    query, key, value = (part.contiguous() for part in qkv)  # each (heads, H·W, c)
    out = x.new_empty((heads, height * width, channels // heads), dtype=query.dtype)
    rows = max(1, memory_budget // (torch.float32.itemsize * heads * width * height * width))
    for start in range(0, height, rows):
        span = slice(start * width, min(start + rows, height) * width)
        part = query[None, :, span]
        bias = _position_bias(attention, part, start, (height, width)) if attention.use_rel_pos else None
        out[:, span] = F.scaled_dot_product_attention(
            part, key[None], value[None], attn_mask=bias, scale=attention.scale
        )[0]
    return attention.proj(out.transpose(0, 1).reshape(1, height, width, channels))


def _position_bias(attention: Attention, query: Tensor, start: int, size: tuple[int, int]) -> Tensor:
    """Return the relative position bias (B, heads, n, H·W) of queries (B, heads, n, c), rows from `start` on."""
    height, width = size
    query = query.unflatten(2, (-1, width))
    along_rows = get_rel_pos(height, height, attention.rel_pos_h)[start : start + query.shape[2]]
    along_columns = get_rel_pos(width, width, attention.rel_pos_w)
    # Contiguous: otherwise their much larger sum would inherit the strides and be copied.
    by_row = torch.einsum("bnhwc,hkc->bnhwk", query, along_rows).contiguous()
    by_column = torch.einsum("bnhwc,wkc->bnhwk", query, along_columns).contiguous()
    return (by_row[..., :, None] + by_column[..., None, :]).flatten(4).flatten(2, 3)
