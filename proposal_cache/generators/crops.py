"""Patches of wide images, such as street scenes, crop by crop (METHOD 1; the paper's B.3)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError
from proposal_cache.generators.base import Generator, descriptions, require_rgb
from proposal_cache.generators.windows import Box, in_window, suppress_across, with_source
from proposal_cache.patches import Patches


def crop_boxes(height: int, width: int, count: int) -> list[Box]:
    """The boxes (x0, y0, x1, y1) that cut an image along its long side into `count` equal parts, in order.

    2048 × 1024 pixels in two parts are two squares. Parts are fewer where the long side has fewer pixels.
    """
    long_side = max(height, width)
    cuts = np.unique(np.linspace(0, long_side, count + 1).round().astype(int)).tolist()
    return [(a, 0, b, height) if width >= height else (0, a, width, b) for a, b in pairwise(cuts)]


@dataclass(frozen=True)
class CropGenerator:
    """Runs a generator on each crop of an image, and joins what it finds.

    Each crop is a source of its own, so that the cache tells from which crop a patch is: `crop_boxes` gives its box.

    Args:
        generator: to run on the crops.
        crops: into how many equal parts the long side is cut.
        box_nms_thresh: of two patches of different crops whose boxes' IoU is above this, the one of lower predicted
            IoU is dropped.
    """

    generator: Generator
    crops: int = 2
    box_nms_thresh: float = 0.7

    def __post_init__(self) -> None:
        sources = len(descriptions(self.generator))
        if self.crops < 1 or self.crops * sources > 256:
            raise CacheError(f"crops must be from 1 to {256 // sources}, not {self.crops}")

    def describe(self) -> list[dict[str, Any]]:
        """A source for each crop and each source of the generator."""
        common = {"name": "crops", "of": self.crops, "box_nms_thresh": self.box_nms_thresh}
        return [
            {**common, "crop": crop, "generator": description}
            for crop in range(self.crops)
            for description in descriptions(self.generator)
        ]

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """The patches of an image (H, W, 3), RGB, crop by crop."""
        require_rgb(image)
        sources = len(descriptions(self.generator))
        parts = []
        for crop, box in enumerate(crop_boxes(image.shape[0], image.shape[1], self.crops)):
            part = in_window(self.generator, image, box)
            parts.append(with_source(part, part.source.astype(np.int64) + crop * sources))
        patches = Patches.concatenate(parts)
        return patches.select(suppress_across(patches, patches.source // sources, self.box_nms_thresh))
