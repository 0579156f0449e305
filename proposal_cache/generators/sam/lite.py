"""Small SAM for CPUs: prompt encoder and mask decoder of `segment_anything` over an EfficientNet-Lite0."""

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from proposal_cache.generators.backbone import PIXEL_MEAN, PIXEL_STD, FusedBackbone

IMAGE_SIZE = 320
CHANNELS = 128  # of prompts and image tokens

_TOKEN = 16  # pixels per side of an image token, as in SAM
_FINEST = 4  # stride of the decoder's finest map, and of SAM's masks
_DECODER_CHANNELS = (32, 40, 48, 64)  # at strides 4, 8, 16 and 32, as in `ContourNetwork`


class LiteEncoder(FusedBackbone):
    """Image encoder whose tokens see their 16 x 16 pixels at stride 4, and the context at stride 16.

    Args:
        image_size: side of the square input in pixels, a multiple of 32; part of the state dict.
        channels: of the image tokens, C.
    """

    def __init__(self, image_size: int = IMAGE_SIZE, channels: int = CHANNELS) -> None:
        super().__init__(_DECODER_CHANNELS)
        self.img_size = image_size
        self.register_buffer("image_size", torch.tensor(image_size))
        patch = _TOKEN // _FINEST
        self.detail = nn.Conv2d(_DECODER_CHANNELS[0], channels, patch, stride=patch)
        self.coarse = nn.Conv2d(_DECODER_CHANNELS[2], channels, 1)
        self.neck = nn.Sequential(
            LayerNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens (B, C, S / 16, S / 16) of normalized images (B, 3, S, S)."""
        _, coarse, _, fine = self.fuse(images)
        return self.neck(self.detail(fine) + self.coarse(coarse))


def build_sam_lite(image_size: int = IMAGE_SIZE) -> Sam:
    """Return the model without trained weights, in evaluation mode."""
    grid = (image_size // _TOKEN, image_size // _TOKEN)
    transformer = TwoWayTransformer(depth=2, embedding_dim=CHANNELS, num_heads=8, mlp_dim=4 * CHANNELS)
    return Sam(
        LiteEncoder(image_size),
        PromptEncoder(CHANNELS, grid, (image_size, image_size), mask_in_chans=16),
        MaskDecoder(transformer_dim=CHANNELS, transformer=transformer, iou_head_hidden_dim=CHANNELS),
        pixel_mean=[PIXEL_MEAN] * 3,
        pixel_std=[PIXEL_STD] * 3,
    ).eval()
