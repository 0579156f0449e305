"""Backbone shared by the small generators: EfficientNet-Lite0 with a top-down decoder."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKBONE = "tf_efficientnet_lite0"
STRIDE = 32  # the coarsest; sides of images must be multiples
PIXEL_MEAN, PIXEL_STD = 127.0, 128.0  # of each channel, as the backbone was trained

_STRIDES = 5  # 2, 4, 8, 16 and 32


class FusedBackbone(nn.Module):
    """EfficientNet-Lite0 with a top-down decoder.

    Args:
        channels: of the decoder, from the finest stride to 32: five numbers from stride 2, four from stride 4.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.backbone = timm.create_model(BACKBONE, features_only=True, pretrained=False)
        info: Any = self.backbone.feature_info
        inputs = info.channels()[_STRIDES - len(channels) :]
        self.lateral = nn.ModuleList(nn.Conv2d(c, d, 1) for c, d in zip(inputs, channels, strict=True))
        # Decoder i fuses its level with the coarser one.
        self.decoder = nn.ModuleList(ConvNorm(c + d, c) for c, d in pairwise(channels))
        self.context = ConvNorm(channels[-1], channels[-1])

    def fuse(self, images: Tensor) -> list[Tensor]:
        """Return the decoder's maps, coarsest first, of normalized images (B, 3, H, W), H and W multiples of 32."""
        features = self.backbone(images)[-len(self.lateral) :]
        levels = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        fused = [self.context(levels[-1])]
        for level, decoder in zip(levels[-2::-1], reversed(self.decoder), strict=True):
            coarse = F.interpolate(fused[-1], size=level.shape[-2:], mode="bilinear", align_corners=False)
            fused.append(decoder(torch.cat([level, coarse], dim=1)))
        return fused

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the backbone's BatchNorm keeps its statistics, as usual for small batches."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class ConvNorm(nn.Sequential):
    """3 x 3 convolution, BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )
