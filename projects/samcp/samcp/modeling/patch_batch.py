"""Patches of a batch as padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor


@dataclass(frozen=True)
class PatchBatch:
    """Patches of B images, padded to the largest number N (at least 1, since attention needs a key).

    Attributes:
        boxes: (B, N, 4) XYXY in input pixels.
        roi_masks: (B, N, S, S) masks resampled over their boxes, in [0, 1].
        valid: (B, N) bool, False for padding.
        image_sizes: (B, 2) height and width of each image before padding.
    """

    boxes: Tensor
    roi_masks: Tensor
    valid: Tensor
    image_sizes: Tensor

    @classmethod
    def from_instances(cls, patches: Sequence[Instances], roi_size: int, device: torch.device) -> "PatchBatch":
        """Collate the mapper's ``patches`` (fields ``patch_boxes``, ``roi_masks``)."""
        num = max([1, *(len(p) for p in patches)])
        batch = cls(
            boxes=torch.zeros(len(patches), num, 4, device=device),
            roi_masks=torch.zeros(len(patches), num, roi_size, roi_size, device=device),
            valid=torch.zeros(len(patches), num, dtype=torch.bool, device=device),
            image_sizes=torch.tensor([p.image_size for p in patches], device=device),
        )
        for i, p in enumerate(patches):
            if p.roi_masks.shape[1:] != (roi_size, roi_size):
                raise ValueError(
                    f"roi_masks of the mapper have shape {tuple(p.roi_masks.shape[1:])}, but the model expects "
                    f"{(roi_size, roi_size)}; build both with the same roi_size"
                )
            batch.boxes[i, : len(p)] = p.patch_boxes.tensor.to(device)
            batch.roi_masks[i, : len(p)] = p.roi_masks.to(device)
            batch.valid[i, : len(p)] = True
        return batch

    @property
    def scale(self) -> Tensor:
        """(B, 1, 4): width, height, width, height of each image, the divisors that normalise boxes."""
        h, w = self.image_sizes.float().unbind(-1)
        return torch.stack([w, h, w, h], dim=-1).unsqueeze(1)

    @property
    def normalized_boxes(self) -> Tensor:
        """(B, N, 4) XYXY in [0, 1]."""
        return self.boxes / self.scale
