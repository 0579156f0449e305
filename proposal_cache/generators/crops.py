"""Generation on crops of an image."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from proposal_cache import rle
from proposal_cache.errors import CacheError
from proposal_cache.generators.base import Generator, descriptions, require_rgb
from proposal_cache.patches import Patches

Box = tuple[int, int, int, int]


def cuts(length: int, parts: int) -> list[int]:
    """Return the borders of at most `parts` equal intervals of pixels, each with at least one."""
    return np.unique(np.linspace(0, length, parts + 1).round().astype(int)).tolist()


def crop_boxes(height: int, width: int, count: int) -> list[Box]:
    """Divide an image along its long side into `count` equal boxes (x0, y0, x1, y1).

    The result has fewer boxes if the long side has fewer pixels.

    >>> crop_boxes(height=1024, width=2048, count=2)
    [(0, 0, 1024, 1024), (1024, 0, 2048, 1024)]
    """
    intervals = pairwise(cuts(max(height, width), count))
    return [(a, 0, b, height) if width >= height else (0, a, width, b) for a, b in intervals]


def generate_in_window(generator: Generator, image: NDArray[np.uint8], box: Box, first_source: int) -> Patches:
    """Return patches of a window (x0, y0, x1, y1) at the image's size, with `first_source` added to their source."""
    x0, y0, x1, y1 = box
    part = generator(np.ascontiguousarray(image[y0:y1, x0:x1]))
    height, width = image.shape[:2]
    return replace(
        part,
        height=height,
        width=width,
        rles=tuple(rle.paste(part.rles, part.height, part.width, x0, y0, height, width)),
        boxes=part.boxes + np.where(part.areas[:, None] > 0, np.array([x0, y0, x0, y0], np.float32), 0),
        source=part.source + np.uint8(first_source),
    )


@dataclass(frozen=True)
class CropGenerator:
    """Generator that runs another one on equal crops of wide images, such as street scenes.

    Each crop is a separate source in the cache. Of two patches of different crops whose boxes overlap with an IoU above
    `box_nms_thresh`, the one with the lower predicted IoU is dropped.
    """

    generator: Generator
    crops: int = 2  # along the long side
    box_nms_thresh: float = 0.7

    def __post_init__(self) -> None:
        sources = len(descriptions(self.generator))
        if self.crops < 1 or self.crops * sources > 256:
            raise CacheError(f"crops must be from 1 to {256 // sources}, not {self.crops}")

    def describe(self) -> list[dict[str, Any]]:
        """Return one description per crop and source of the generator."""
        common = {"name": "crops", "of": self.crops, "box_nms_thresh": self.box_nms_thresh}
        return [
            {**common, "crop": crop, "generator": description}
            for crop in range(self.crops)
            for description in descriptions(self.generator)
        ]

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """Return the patches of an image (H, W, 3) RGB, ordered by crop."""
        require_rgb(image)
        sources = len(descriptions(self.generator))
        boxes = crop_boxes(image.shape[0], image.shape[1], self.crops)
        patches = Patches.concatenate(
            [generate_in_window(self.generator, image, box, crop * sources) for crop, box in enumerate(boxes)]
        )
        return patches.select(suppress_across(patches, patches.source // sources, self.box_nms_thresh))


def suppress_across(patches: Patches, group: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Return the indices, ascending, of the patches that box NMS between groups (N,) keeps.

    Patches are ranked by predicted IoU, then by area; those of one group do not suppress each other.
    """
    if not len(patches):
        return np.zeros(0, np.int64)
    boxes = patches.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    overlap = coco.iou(boxes, boxes, [0] * len(boxes)) > threshold
    overlap &= group[:, None] != group[None]
    kept = np.zeros(len(patches), bool)
    for i in np.lexsort((-patches.areas, -np.nan_to_num(patches.predicted_iou, nan=-np.inf))):
        kept[i] = not (overlap[i] & kept).any()
    return np.flatnonzero(kept)
