"""Network that predicts boundaries of objects and regions, and an embedding in which pixels of one region are close."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proposal_cache.generators.backbone import PIXEL_MEAN, PIXEL_STD, FusedBackbone


class ContourNetwork(FusedBackbone):
    """EfficientNet-Lite0 with a top-down decoder to stride 2.

    Args:
        channels: of the decoder at strides 2, 4, 8, 16 and 32.
        embedding_dim: of the embedding, E.
    """

    def __init__(self, *, channels: Sequence[int] = (24, 32, 40, 48, 64), embedding_dim: int = 16) -> None:
        super().__init__(channels)
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
        fused = self.fuse((images - PIXEL_MEAN) / PIXEL_STD)
        return self.boundary(fused[-1]).squeeze(1), self.embedding(fused[-2])

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
