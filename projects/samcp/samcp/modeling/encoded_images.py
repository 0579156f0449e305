"""What the network makes of images and patches before it is told any class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from samcp.modeling.patch_batch import PatchBatch


@dataclass(frozen=True)
class EncodedImages:
    """B images and their N patches, encoded; the same for every vocabulary.

    Attributes:
        features: the backbone's maps by name, each (B, channels, h, w).
        patches: what was encoded.
        content, position: (B, N, D), the encoder's F and P_F.
    """

    features: Mapping[str, Tensor]
    patches: PatchBatch
    content: Tensor
    position: Tensor

    def image(self, index: int) -> "EncodedImages":
        """One of the images alone, without the padding of its patches."""
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


def join_maps(maps: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of the maps of several images, each (1, channels, h, w) of its own size.

    The edge goes on into the padding, so that RoIAlign reads at an image's border what it would read there alone.
    """
    joined = {}
    for name in maps[0]:
        levels = [image[name] for image in maps]
        height, width = (max(level.shape[axis] for level in levels) for axis in (2, 3))
        padded = [
            F.pad(level, (0, width - level.shape[3], 0, height - level.shape[2]), mode="replicate") for level in levels
        ]
        joined[name] = torch.cat(padded)
    return joined
