"""Pictures of patches."""

import colorsys

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches

_OPACITY = 0.55
_GOLDEN = 0.618034  # steps of this round the colour circle keep neighbours far apart


def draw_patches(patches: Patches, image: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """All patches in one picture (H, W, 3), RGB: filled, small ones in front of large ones, with white outlines.

    Args:
        patches: of the image.
        image: (H, W, 3) uint8 RGB to draw on; black where there is none. Pixels in no patch keep its colour.

    Raises:
        CacheError: where the image has another size than the patches.
    """
    size = (patches.height, patches.width)
    canvas = np.zeros((*size, 3), np.float32) if image is None else np.array(image, np.float32)
    if canvas.shape[:2] != size:
        raise CacheError(
            f"the patches are of an image of {size[0]} x {size[1]} pixels, this one has {canvas.shape[:2]}"
        )
    fill = np.full(size, -1)
    edge = np.zeros(size, bool)
    for index in np.argsort(-patches.areas, kind="stable"):
        mask = patches.decode([int(index)])[0]
        outline = mask & ~_eroded(mask)
        fill[mask] = index
        edge[mask] = outline[mask]
    covered = fill >= 0
    opacity = 1.0 if image is None else _OPACITY
    canvas[covered] = (1 - opacity) * canvas[covered] + opacity * _colours(len(patches))[fill[covered]]
    canvas[edge] = 255
    return canvas.round().astype(np.uint8)


def _colours(count: int) -> NDArray[np.float32]:
    """(count, 3) RGB, 0..255, all different."""
    rows = [colorsys.hsv_to_rgb((i * _GOLDEN) % 1, 0.55 + 0.4 * (i % 3) / 2, 1 - 0.35 * (i % 2)) for i in range(count)]
    return np.array(rows, np.float32).reshape(count, 3) * 255


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask whose four neighbours are in it too; outside the image counts as in it."""
    padded = np.pad(mask, 1, mode="edge")
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & mask
