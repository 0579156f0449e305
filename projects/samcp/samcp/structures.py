"""Masks of predicted instances as RLEs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor


class RLEMasks:
    """Masks as COCO RLEs, decoded on access, for the field ``pred_masks`` of Detectron2's ``Instances``.

    Iteration yields (H, W) bool tensors, as Detectron2's evaluators expect; :attr:`tensor` contains all masks.

    Args:
        rles: COCO RLEs, ``{"size": [H, W], "counts": bytes}``, all of one size.
        height, width: of the masks, needed if there are none.
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
            selected: Sequence[dict] = [self.rles[index]]
        elif isinstance(index, slice):
            selected = self.rles[index]
        else:
            keep = torch.as_tensor(index)
            keep = keep.nonzero().squeeze(1) if keep.dtype == torch.bool else keep
            selected = [self.rles[i] for i in keep.tolist()]
        return RLEMasks(selected, self.height, self.width)

    @property
    def tensor(self) -> Tensor:
        """Decoded masks, (R, H, W) bool."""
        if not self.rles:
            return torch.zeros(0, self.height, self.width, dtype=torch.bool)
        return torch.stack(list(self))

    def to(self, *args: object, **kwargs: object) -> "RLEMasks":
        """Return self, since RLEs have no device; ``Instances.to`` calls this method of each field."""
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Return the masks as an array, for Detectron2's ``Visualizer``."""
        return np.asarray(self.tensor.numpy(), dtype=dtype)
