"""Running a generator on a part of an image, and joining what several parts give."""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco

from proposal_cache import rle
from proposal_cache.generators.base import Generator
from proposal_cache.patches import Patches

Box = tuple[int, int, int, int]


def in_window(generator: Generator, image: NDArray[np.uint8], box: Box) -> Patches:
    """The patches that a generator finds in the part (x0, y0, x1, y1) of an image, at the image's size."""
    x0, y0, x1, y1 = box
    part = generator(np.ascontiguousarray(image[y0:y1, x0:x1]))
    height, width = image.shape[:2]
    return replace(
        part,
        height=height,
        width=width,
        rles=tuple(rle.paste(part.rles, part.height, part.width, x0, y0, height, width)),
        boxes=part.boxes + np.where(part.areas[:, None] > 0, np.array([x0, y0, x0, y0], np.float32), 0),
    )


def with_source(patches: Patches, source: ArrayLike) -> Patches:
    """The same patches, of another source."""
    return replace(patches, source=np.array(np.broadcast_to(np.asarray(source, np.uint8), len(patches))))


def ranking(patches: Patches) -> NDArray[np.int64]:
    """Indices, best first: by predicted IoU, and by area where there is none."""
    score = np.nan_to_num(patches.predicted_iou, nan=-np.inf)
    return np.lexsort((-patches.areas, -score))


def suppress_across(patches: Patches, group: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Box NMS between groups of patches, such as crops.

    Args:
        patches: of one image.
        group: (N,) two of the same group leave each other alone.
        threshold: of two boxes whose IoU is above this, the lower-ranked one goes.

    Returns:
        Indices kept, ascending.
    """
    if not len(patches):
        return np.zeros(0, np.int64)
    boxes = patches.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    overlap = coco.iou(boxes, boxes, [0] * len(boxes)) > threshold
    overlap &= group[:, None] != group[None]
    kept = np.zeros(len(patches), bool)
    for i in ranking(patches):
        kept[i] = not (overlap[i] & kept).any()
    return np.flatnonzero(kept)
