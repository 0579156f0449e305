"""What every maker of patches has in common."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches


class Generator(Protocol):
    """Cuts one image into patches.

    A generator that runs in several processes is pickled; one that holds a model on a device is not, and runs in the
    process that made it.
    """

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps: `name`, every parameter, and the SHA-256 of the weights if there are any.

        JSON values only. Two generators with equal descriptions make equal patches.
        """

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """The patches of an image (H, W, 3), RGB."""


def require_rgb(image: NDArray[Any]) -> None:
    """Refuses what is no RGB image.

    Raises:
        CacheError: unless `image` is (H, W, 3) uint8 with at least one pixel.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise CacheError(f"an image is (H, W, 3) uint8 RGB with at least one pixel, not {image.shape} {image.dtype}")
