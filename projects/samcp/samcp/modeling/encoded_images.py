"""Encoded images and patches, which do not depend on the vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from samcp.modeling.patch_batch import PatchBatch


@dataclass(frozen=True)
class EncodedImages:
    """Feature maps of B images and encodings of their N patches.

    Attributes:
        features: feature maps of the backbone by name, each (B, channels, h, w).
        patches: the patches that were encoded.
        content, position: (B, N, D), F and P_F of the patch encoder.
    """

    features: Mapping[str, Tensor]
    patches: PatchBatch
    content: Tensor
    position: Tensor

    def image(self, index: int) -> "EncodedImages":
        """Return one of the images, without the padding of its patches."""
        rows = slice(index, index + 1)
        columns = slice(0, max(1, int(self.patches.valid[index].sum())))
        return EncodedImages(
            {name: maps[rows] for name, maps in self.features.items()},
            PatchBatch(
                boxes=self.patches.boxes[rows, columns],
                roi_masks=self.patches.roi_masks[rows, columns],
                valid=self.patches.valid[rows, columns],
                image_sizes=self.patches.image_sizes[rows],
            ),
            self.content[rows, columns],
            self.position[rows, columns],
        )


def pad_and_stack(maps: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack feature maps (1, channels, h, w) of images of different sizes into one batch.

    The padding replicates the edge, so that RoIAlign gives the same result at the border as without padding.
    """
    stacked = {}
    for name in maps[0]:
        levels = [image[name] for image in maps]
        height, width = (max(level.shape[axis] for level in levels) for axis in (2, 3))
        padded = [
            F.pad(level, (0, width - level.shape[3], 0, height - level.shape[2]), mode="replicate") for level in levels
        ]
        stacked[name] = torch.cat(padded)
    return stacked
