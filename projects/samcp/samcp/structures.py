"""Masks of predicted instances as RLEs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor


class RLEMasks:
    """Masks kept as COCO RLEs and decoded when looked at: the field ``pred_masks`` of Detectron2's ``Instances``.

    Iterates as (H, W) bool tensors, as Detectron2's evaluators expect; :attr:`tensor` has them all.

    Args:
        rles: COCO RLEs, ``{"size": [H, W], "counts": bytes}``, all of one size.
        height, width: their size, needed where there is none.
    """

    def __init__(self, rles: Sequence[dict], height: int, width: int) -> None:
        self.rles = list(rles)
        self.height = height
        self.width = width

    def __len__(self) -> int:
        return len(self.rles)

    def __iter__(self) -> Iterator[Tensor]:
        for rle in self.rles:
            yield torch.from_numpy(mask_util.decode(rle)).bool()

    def __getitem__(self, index: "int | slice | Tensor | Sequence[int]") -> "RLEMasks":
        """Select masks by a slice, indices or a boolean mask; the result is always RLEMasks."""
        if isinstance(index, int):
            picked: Sequence[dict] = [self.rles[index]]
        elif isinstance(index, slice):
            picked = self.rles[index]
        else:
            keep = torch.as_tensor(index)
            keep = keep.nonzero().squeeze(1) if keep.dtype == torch.bool else keep
            picked = [self.rles[i] for i in keep.tolist()]
        return RLEMasks(picked, self.height, self.width)

    @property
    def tensor(self) -> Tensor:
        """(R, H, W) bool, decoded."""
        if not self.rles:
            return torch.zeros(0, self.height, self.width, dtype=torch.bool)
        return torch.stack(list(self))

    def to(self, *args: object, **kwargs: object) -> "RLEMasks":
        """RLEs live on no device; here since ``Instances.to`` asks every field."""
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """For Detectron2's ``Visualizer``, which turns masks into an array."""
        return np.asarray(self.tensor.numpy(), dtype=dtype)
