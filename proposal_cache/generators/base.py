"""Interface of patch generators."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches

Description = dict[str, Any] | list[dict[str, Any]]


class Generator(Protocol):
    """Callable that returns the patches of an image.

    A generator that runs in several processes must be picklable.
    """

    def describe(self) -> Description:
        """Return the generator's name, every parameter, and the SHA-256 of its weights, as JSON values.

        Generators with equal descriptions must return equal patches. A generator with several sources returns a list
        of descriptions, into which `Patches.source` is an index.
        """

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """Return the patches of an image (H, W, 3) RGB."""


@runtime_checkable
class BoxGenerator(Generator, Protocol):
    """Generator that accepts boxes with an image."""

    def generate_with_boxes(self, image: NDArray[np.uint8], boxes: Sequence[Sequence[float]]) -> Patches:
        """Return the patches of an image (H, W, 3) RGB, searched again inside boxes (x0, y0, x1, y1) in pixels."""


def descriptions(generator: Generator) -> list[dict[str, Any]]:
    """Return the description of each source of a generator."""
    description = generator.describe()
    return description if isinstance(description, list) else [description]


def require_rgb(image: NDArray[Any]) -> None:
    """Raise CacheError unless `image` is (H, W, 3) uint8 with at least one pixel."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise CacheError(
            f"an image must be (H, W, 3) uint8 RGB with at least one pixel, not {image.shape} {image.dtype}"
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file of weights, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
