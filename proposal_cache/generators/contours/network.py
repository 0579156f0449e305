"""Network that predicts boundaries of objects and regions, and an embedding in which pixels of one region are close."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKBONE = "tf_efficientnet_lite0"

STRIDE = 32  # the coarsest; sides of images must be multiples
_MEAN, _STD = 127.0, 128.0  # of pixels, as the backbone was trained


class ContourNetwork(nn.Module):
    """EfficientNet-Lite0 with a top-down decoder to stride 2.

    Args:
        channels: of the decoder at strides 2, 4, 8, 16 and 32.
        embedding_dim: of the embedding, E.
    """

    def __init__(self, *, channels: Sequence[int] = (24, 32, 40, 48, 64), embedding_dim: int = 16) -> None:
        super().__init__()
        self.backbone = timm.create_model(BACKBONE, features_only=True, pretrained=False)
        info: Any = self.backbone.feature_info
        self.lateral = nn.ModuleList(nn.Conv2d(c, d, 1) for c, d in zip(info.channels(), channels, strict=True))
        # Decoder i fuses its level with the coarser one.
        self.decoder = nn.ModuleList(_ConvNorm(c + d, c) for c, d in pairwise(channels))
        self.context = _ConvNorm(channels[-1], channels[-1])
        self.boundary = nn.Conv2d(channels[0], 1, 3, padding=1)
        self.embedding = nn.Conv2d(channels[1], embedding_dim, 1)
        self.log_scale = nn.Parameter(torch.zeros(()))  # of squared distances of embeddings, see `same_region_logits`
        self.bias = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict boundaries and embeddings.

        Args:
            images: (B, 3, H, W) RGB, 0 to 255, H and W multiples of 32.

        Returns:
            Boundary logits (B, H / 2, W / 2) and embeddings (B, E, H / 4, W / 4).
        """
        features = self.backbone((images - _MEAN) / _STD)
        levels = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        x = self.context(levels[-1])
        fused = []
        for level, decoder in zip(levels[-2::-1], reversed(self.decoder), strict=True):
            x = F.interpolate(x, size=level.shape[-2:], mode="bilinear", align_corners=False)
            x = decoder(torch.cat([level, x], dim=1))
            fused.append(x)
        return self.boundary(fused[-1]).squeeze(1), self.embedding(fused[-2])

    def train(self, mode: bool = True) -> "ContourNetwork":
        """Set the mode; the backbone's BatchNorm keeps its statistics, as usual for small batches."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def same_region_logits(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the logit that pixels with these embeddings (..., E) are in one region, (...)."""
        return self.bias - self.log_scale.exp() * (one - other).square().sum(-1)

    @torch.inference_mode()
    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Predict boundaries and embeddings of one image.

        Args:
            image: (3, H, W) RGB, 0 to 255, H and W multiples of 32.

        Returns:
            Boundary probabilities (H, W), and embeddings (E, H / 4, W / 4) scaled so that `same_region_logits` falls by
            the squared distance.
        """
        logits, embedding = self(image[None].contiguous(memory_format=torch.channels_last))
        boundary = F.interpolate(logits[None].sigmoid(), scale_factor=2, mode="bilinear", align_corners=False)
        return boundary[0, 0], (self.log_scale / 2).exp() * embedding[0]


class _ConvNorm(nn.Sequential):
    """3 x 3 convolution, BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )
