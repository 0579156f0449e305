"""A small SAM with random weights whose masks are smooth blobs with a range of predicted IoU and stability."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn


@lru_cache
def small_sam(*, image_size: int = 256, width: int = 32, heads: int = 2, seed: int = 0) -> Sam:
    """Return a cached model of segment_anything's modules: a small ViT, a full-size prompt encoder and mask decoder.

    Its random weights are adjusted: biases and positional embeddings are nonzero; image tokens vary smoothly over the
    image; the influence of the prompt is increased; all pixels of a token have the same kernel; and the last layers of
    the heads are scaled to logits with a standard deviation of 30 that are positive in a small part of the image, and
    to predicted IoUs of 0.8 ± 0.15. Do not modify the model.
    """
    torch.manual_seed(seed)
    sam = build_small_sam(image_size=image_size, width=width, heads=heads)
    with torch.no_grad():
        _vary(sam)
        _calibrate(sam)
    return sam


def build_small_sam(*, image_size: int = 256, width: int = 32, heads: int = 2) -> Sam:
    """Build a model like `segment_anything.sam_model_registry` does, with its default initialization."""
    encoder = ImageEncoderViT(
        image_size, embed_dim=width, depth=2, num_heads=heads, use_rel_pos=True, window_size=7, global_attn_indexes=(1,)
    )
    grid = (image_size // 16, image_size // 16)
    prompt_encoder = PromptEncoder(256, grid, (image_size, image_size), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    return Sam(encoder, prompt_encoder, MaskDecoder(transformer_dim=256, transformer=transformer)).eval()


def smooth_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) uint8 of coloured blobs."""
    noise = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(noise, (height, width), mode="bicubic")[0].clamp(0, 1)
    return (image.permute(1, 2, 0) * 255).byte().numpy()


def _vary(sam: Sam) -> None:
    for name, parameter in sam.named_parameters():
        if parameter.ndim == 1 or "rel_pos" in name:
            parameter.add_(0.1 * torch.randn_like(parameter))
    position = sam.image_encoder.pos_embed
    noise = torch.randn(1, position.shape[-1], 4, 4)
    position.copy_(2 * F.interpolate(noise, position.shape[1:3], mode="bicubic").permute(0, 2, 3, 1))

    decoder = sam.mask_decoder
    decoder.iou_token.weight.mul_(0.3)
    decoder.mask_tokens.weight.mul_(0.3)
    transformer = decoder.transformer
    attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        layer.self_attn.v_proj.weight.mul_(4)
        layer.self_attn.out_proj.weight.mul_(4)
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in attentions:  # queries match keys at the same position
        attention.k_proj.weight.copy_(attention.q_proj.weight)
    for convolution in (decoder.output_upscaling[0], decoder.output_upscaling[3]):
        convolution.weight.copy_(2 * convolution.weight.mean((2, 3), keepdim=True).expand_as(convolution.weight))


def _calibrate(sam: Sam, spread: float = 30.0, depth: float = 1.5) -> None:
    """Scale the heads on 32 points of an image: logits to (-depth ± 1)·spread, predicted IoU to 0.8 ± 0.15."""
    decoder = sam.mask_decoder
    upscaled, _, _ = _predict(sam, decoder.output_upscaling)
    mean = upscaled.mean((0, 2, 3))
    for mlp in decoder.output_hypernetworks_mlps:
        last = mlp.layers[-1]
        along = torch.outer(mean, mean) / (mean @ mean)
        last.weight.sub_(along @ last.weight)
        last.bias.sub_(along @ last.bias)
    _, logits, iou = _predict(sam, decoder.iou_prediction_head)
    for mlp, std in zip(decoder.output_hypernetworks_mlps[1:], logits.std((0, 2, 3)), strict=True):
        last = mlp.layers[-1]
        last.weight.mul_(spread / std)
        last.bias.mul_(spread / std).sub_(depth * spread * mean / (mean @ mean))
    last = decoder.iou_prediction_head.layers[-1]
    scale = 0.15 / iou.std(0)
    shift = 0.8 - iou.mean(0) * scale
    last.weight[1:].mul_(scale[:, None])
    last.bias[1:].mul_(scale).add_(shift)


def _predict(sam: Sam, module: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output of a module of the decoder for 32 points, low-resolution logits and predicted IoUs."""
    outputs: list[Any] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    predictor = SamPredictor(sam)
    predictor.set_image(smooth_image(120, 160, seed=100))
    points = torch.rand(32, 1, 2) * torch.tensor(predictor.input_size[::-1])
    _, iou, logits = predictor.predict_torch(points, torch.ones(32, 1, dtype=torch.int))
    hook.remove()
    return outputs[0], logits, iou
