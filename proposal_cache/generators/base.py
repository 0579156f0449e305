"""What every maker of patches has in common."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches

Description = dict[str, Any] | list[dict[str, Any]]


class Generator(Protocol):
    """Cuts one image into patches.

    A generator that runs in several processes is pickled; one that holds a model on a device is not, and runs in the
    process that made it.
    """

    def describe(self) -> Description:
        """What the manifest keeps: `name`, every parameter, and the SHA-256 of the weights if there are any.

        JSON values only. Two generators with equal descriptions make equal patches. One whose patches come from several
        sources describes each, in the order that `Patches.source` counts.
        """

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """The patches of an image (H, W, 3), RGB."""


@runtime_checkable
class BoxGenerator(Generator, Protocol):
    """One that takes boxes given with an image."""

    def look_into(self, image: NDArray[np.uint8], boxes: Sequence[Sequence[float]]) -> Patches:
        """The patches of an image (H, W, 3), RGB, and what a closer look into boxes (x0, y0, x1, y1) finds."""


def descriptions(generator: Generator) -> list[dict[str, Any]]:
    """The description of each source of a generator."""
    description = generator.describe()
    return description if isinstance(description, list) else [description]


def require_rgb(image: NDArray[Any]) -> None:
    """Refuses what is no RGB image.

    Raises:
        CacheError: unless `image` is (H, W, 3) uint8 with at least one pixel.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise CacheError(f"an image is (H, W, 3) uint8 RGB with at least one pixel, not {image.shape} {image.dtype}")
