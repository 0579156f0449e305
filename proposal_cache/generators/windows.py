"""Generation on a window of an image."""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proposal_cache import rle
from proposal_cache.generators.base import Generator
from proposal_cache.patches import Patches

Box = tuple[int, int, int, int]


def generate_in_window(generator: Generator, image: NDArray[np.uint8], box: Box) -> Patches:
    """Run a generator on the window (x0, y0, x1, y1) of an image; return patches of the image's size."""
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
    """Return the patches with another `source`, (N,)."""
    return replace(patches, source=np.asarray(source, np.uint8))
