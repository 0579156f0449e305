"""Masks of many shapes."""

import numpy as np


def random_masks(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return noise, rectangles, discs, full and empty masks in turn, (count, height, width) bool."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    masks = []
    for i in range(count):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.3, max(height, width) / 2)
        shapes = [
            rng.random((height, width)) < rng.random(),
            (abs(y - cy) <= r) & (abs(x - cx) <= r / 2),
            (y - cy) ** 2 + (x - cx) ** 2 < r * r,
            np.full((height, width), True),
            np.full((height, width), False),
        ]
        masks.append(shapes[i % len(shapes)])
    return np.array(masks, bool).reshape(count, height, width)
