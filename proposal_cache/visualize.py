"""Drawing of patches."""

import colorsys

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches

_OPACITY = 0.55
_GOLDEN_RATIO = 0.618034  # as hue step: neighbouring indices get distant hues


def draw_patches(patches: Patches, image: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Draw all patches with white outlines, small ones in front of large ones, as (H, W, 3) uint8 RGB.

    Pixels of `image` (H, W, 3) RGB outside all patches keep their colour; without an image, they are black. Raises
    CacheError if image and patches have different sizes.
    """
    size = (patches.height, patches.width)
    canvas = np.zeros((*size, 3), np.float32) if image is None else np.array(image, np.float32)
    if canvas.shape[:2] != size:
        raise CacheError(f"the patches are of an image of {size[0]} x {size[1]} pixels, not {canvas.shape[:2]}")
    fill = np.full(size, -1)
    edge = np.zeros(size, bool)
    for index in np.argsort(-patches.areas, kind="stable"):
        mask = patches.decode([int(index)])[0]
        fill[mask] = index
        edge[mask] = ~_eroded(mask)[mask]
    covered = fill >= 0
    opacity = 1.0 if image is None else _OPACITY
    canvas[covered] = (1 - opacity) * canvas[covered] + opacity * _colours(len(patches))[fill[covered]]
    canvas[edge] = 255
    return canvas.round().astype(np.uint8)


def _colours(count: int) -> NDArray[np.float32]:
    """Return distinct RGB colours in 0..255, (count, 3)."""
    hsv = ((i * _GOLDEN_RATIO % 1, 0.55 + 0.4 * (i % 3) / 2, 1 - 0.35 * (i % 2)) for i in range(count))
    return np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv], np.float32).reshape(count, 3) * 255


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Erode a mask by one pixel (4-neighbourhood); the image border does not count as background."""
    padded = np.pad(mask, 1, mode="edge")
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & mask
