"""Augmentation of patches without decoding their masks.

Flip, resize and crop compose to one axis-aligned affine map. The map is applied to a patch's box, and its RoI mask is
sampled from the RLE at the original size; only a crop changes masks, by a rectangle of the original image.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from proposal_cache import Patches

# Detectron2's ExtentTransform computes in float32: a coordinate of some thousand pixels has an error up to 1e-3.
_TOLERANCE = 1e-2


@dataclass(frozen=True)
class AxisAlignedMap:
    """Axis-aligned affine map from the original image to the network's input: x' = x * scale + offset, same for y.

    Attributes:
        scale, offset: (x, y); a negative scale is a flip.
        original_size, input_size: (height, width) in pixels.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    original_size: tuple[int, int]
    input_size: tuple[int, int]

    @classmethod
    def from_transforms(
        cls, transforms: T.Transform, original_size: tuple[int, int], input_size: tuple[int, int]
    ) -> "AxisAlignedMap":
        """Compose Detectron2's transforms.

        Args:
            transforms: one transform or a TransformList.
            original_size, input_size: (height, width) before and after.

        Raises:
            ValueError: a transform is not an axis-aligned affine map; the message names it.
        """
        height, width = original_size
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=np.float64)
        moved = corners.copy()
        for transform in _leaves(transforms):
            moved = np.asarray(transform.apply_coords(moved.copy()), dtype=np.float64)
            _check_axis_aligned(moved, transform)
        scale = (moved[3] - moved[0]) / (width, height)
        return cls(tuple(scale), tuple(moved[0]), original_size, input_size)

    @property
    def flips(self) -> tuple[bool, bool]:
        """Whether (x, y) is mirrored."""
        return self.scale[0] < 0, self.scale[1] < 0

    @property
    def visible(self) -> tuple[int, int, int, int]:
        """Part of the original image that the input shows: x0, y0, x1, y1 in whole original pixels, ends exclusive."""
        (height, width), (input_height, input_width) = self.original_size, self.input_size
        ends = (np.array([[0, 0], [input_width, input_height]]) - self.offset) / self.scale
        low, high = np.rint(ends.min(axis=0)).astype(int), np.rint(ends.max(axis=0)).astype(int)
        x0, y0 = np.clip(low, 0, (width, height))
        x1, y1 = np.clip(high, 0, (width, height))
        return int(x0), int(y0), int(x1), int(y1)

    @property
    def crops(self) -> bool:
        """Whether the input shows only a part of the original image."""
        height, width = self.original_size
        return self.visible != (0, 0, width, height)

    def map_boxes(self, boxes: np.ndarray) -> Boxes:
        """Map boxes (n, 4) XYXY of the original image to the input, and clip them to it."""
        corners = boxes.reshape(-1, 2, 2) * np.array(self.scale) + np.array(self.offset)
        low, high = corners.min(axis=1), corners.max(axis=1)
        mapped = Boxes(torch.from_numpy(np.concatenate([low, high], axis=1).astype(np.float32)))
        mapped.clip(self.input_size)
        return mapped

    def crop(self, patches: Patches) -> Patches:
        """Crop masks to the visible part, in original pixels; number and order stay."""
        return patches.crop_to(self.visible) if self.crops else patches


def crop_patches(patches: Patches, mapping: AxisAlignedMap, min_area: int) -> Patches:
    """Crop patches to the visible part; drop those that the crop reduces to fewer than ``min_area`` original pixels.

    Patches that the crop does not change are kept whatever their size, so an uncropped image keeps all patches.
    """
    if not mapping.crops:
        return patches
    cropped = mapping.crop(patches)
    return cropped.select(np.flatnonzero((cropped.areas == patches.areas) | (cropped.areas >= min_area)))


def patch_instances(patches: Patches, mapping: AxisAlignedMap, roi_size: int) -> Instances:
    """Convert N cropped patches to the model's input.

    Returns:
        Instances of the input's size with patch_boxes, Boxes (N, 4) in input pixels, and roi_masks
        (N, roi_size, roi_size) float32: the share of each cell of the box that the mask covers, flipped as the image.
    """
    masks = patches.roi_masks(size=roi_size)
    flip_x, flip_y = mapping.flips
    if flip_x:
        masks = masks[:, :, ::-1]
    if flip_y:
        masks = masks[:, ::-1]
    instances = Instances(mapping.input_size)
    instances.patch_boxes = mapping.map_boxes(patches.boxes)
    instances.roi_masks = torch.from_numpy(np.ascontiguousarray(masks, dtype=np.float32))
    return instances


def _leaves(transform: T.Transform) -> Iterator[T.Transform]:
    if isinstance(transform, T.TransformList):
        for part in transform.transforms:
            yield from _leaves(part)
    else:
        yield transform


def _check_axis_aligned(corners: np.ndarray, transform: T.Transform) -> None:
    """Raise ValueError unless corners (4, 2), mapped from (0, 0), (w, 0), (0, h), (w, h), form an upright rectangle."""
    (x00, y00), (x10, y10), (x01, y01), (x11, y11) = corners
    off_axis = np.abs([y10 - y00, x01 - x00, x11 - x10, y11 - y01]).max()
    if off_axis > _TOLERANCE or min(abs(x10 - x00), abs(y01 - y00)) < _TOLERANCE:
        raise ValueError(
            f"patches do not support {transform!r}: only augmentations that keep rectangles upright "
            "(flip, resize, crop, pad) are supported; remove it from the augmentations"
        )
