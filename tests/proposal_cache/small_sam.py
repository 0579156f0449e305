"""A small SAM with random weights whose masks look like masks: smooth regions, some good and some bad."""

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer


def small_sam(*, image_size: int = 256, width: int = 32, heads: int = 2, seed: int = 0) -> Sam:
    """SAM's own modules: its prompt encoder and decoder at full width, its ViT small, all weights random.

    Three things are done to the random weights, none to the code. The pixels of an upscaled token get the same kernel,
    so that masks are smooth; biases and positions are not zero, so that a wrong one shows; and the heads' last layers
    are scaled, so that logits are some way from zero and predicted IoUs spread around 0.8.
    """
    torch.manual_seed(seed)
    grid = image_size // 16
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=2,
            embed_dim=width,
            img_size=image_size,
            num_heads=heads,
            patch_size=16,
            use_rel_pos=True,
            global_attn_indexes=(1,),
            window_size=7,
            out_chans=256,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=256,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
        ),
    ).eval()
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(0, 0.2)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        decoder = sam.mask_decoder
        for convolution in (decoder.output_upscaling[0], decoder.output_upscaling[3]):
            convolution.weight.copy_(convolution.weight.mean((2, 3), keepdim=True).expand_as(convolution.weight) * 2)
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(150)
        last = decoder.iou_prediction_head.layers[-1]
        last.weight.mul_(3)
        last.bias.fill_(0.8)
    return sam


def smooth_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: blobs of colour."""
    noise = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0].clamp(0, 1)
    return (image.permute(1, 2, 0) * 255).byte().numpy()
