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
        boxes = torch.zeros(len(patches), num, 4)
        roi_masks = torch.zeros(len(patches), num, roi_size, roi_size)
        valid = torch.zeros(len(patches), num, dtype=torch.bool)
        for i, p in enumerate(patches):
            if p.roi_masks.shape[1:] != (roi_size, roi_size):
                raise ValueError(
                    f"roi_masks of the mapper have shape {tuple(p.roi_masks.shape[1:])}, but the model expects "
                    f"{(roi_size, roi_size)}; build both with the same roi_size"
                )
            boxes[i, : len(p)], roi_masks[i, : len(p)], valid[i, : len(p)] = p.patch_boxes.tensor, p.roi_masks, True
        image_sizes = torch.tensor([p.image_size for p in patches])
        return cls(*(copy_to(x, device) for x in (boxes, roi_masks, valid, image_sizes)))

    @property
    def scale(self) -> Tensor:
        """(B, 1, 4): width, height, width, height of each image, the divisors that normalise boxes."""
        h, w = self.image_sizes.float().unbind(-1)
        return torch.stack([w, h, w, h], dim=-1).unsqueeze(1)

    @property
    def normalized_boxes(self) -> Tensor:
        """(B, N, 4) XYXY in [0, 1]."""
        return self.boxes / self.scale


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to a device; the copy to a GPU is asynchronous, from pinned memory."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
