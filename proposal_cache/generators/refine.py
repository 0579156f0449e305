"""Second generation pass on enlarged windows of an image, for small or missed objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposal_cache import rle
from proposal_cache.errors import CacheError
from proposal_cache.generators.base import Generator, descriptions, require_rgb
from proposal_cache.generators.crops import Box, cuts, generate_in_window
from proposal_cache.patches import Patches


@dataclass(frozen=True)
class RefineGenerator:
    """Generator that runs another one on an image, then again on enlarged windows with small patches or low coverage.

    The image is divided into `grid` x `grid` cells. A cell is searched again if it contains at least `small_patches`
    small patches, or if patches cover at most `coverage` of its pixels. Its window is the cell plus `margin` on all
    sides. SAM resizes each window to its input size, so its grid of points is `grid` times denser there. New patches
    are added unless the window truncates them or they duplicate an existing patch.
    """

    generator: Generator  # for the image
    detail: Generator | None = None  # for the windows: the one that a `CropGenerator` runs; None for `generator`
    grid: int = 4  # cells per side
    small_area: float = 0.001  # area, relative to the image, below which a patch is small
    small_patches: int = 4  # 0 searches every cell
    coverage: float = 0.5
    margin: float = 0.25  # relative to the cell's size
    max_windows: int = 4  # per image; cells with most small patches and least coverage come first
    duplicate_iou: float = 0.7  # mask IoU above which a new patch is a duplicate
    boxes_sha256: str | None = None  # digest, for `describe`, of the file with the boxes of `generate_with_boxes`

    def __post_init__(self) -> None:
        sources = len(self.describe())
        if sources > 256:
            raise CacheError(f"the generators have {sources} sources in total; a cache supports at most 256")

    def describe(self) -> list[dict[str, Any]]:
        """Return the descriptions of the generator's sources, then those of the second pass."""
        options = {name: value for name, value in vars(self).items() if name not in ("generator", "detail")}
        second = [{"name": "refine", **options, "generator": detail} for detail in descriptions(self._detail)]
        return [*descriptions(self.generator), *second]

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """Return the patches of an image (H, W, 3) RGB; those of the first pass come first."""
        return self.generate_with_boxes(image, ())

    def generate_with_boxes(self, image: NDArray[np.uint8], boxes: Sequence[Sequence[float]]) -> Patches:
        """Return the patches, searching also inside boxes (x0, y0, x1, y1); raise CacheError if one is outside."""
        require_rgb(image)
        patches = self.generator(image)
        first_source = len(descriptions(self.generator))
        given = [clip_box(box, patches.height, patches.width) for box in boxes]
        windows = [*given, *self.windows(patches)]
        return add_patches(patches, image, windows, self._detail, first_source, self.duplicate_iou)

    def windows(self, patches: Patches) -> list[Box]:
        """Return the windows to search again, highest priority first."""
        height, width = patches.height, patches.width
        covered = rle.decode(patches.union([range(len(patches))]), height, width)[0]
        centres = (patches.boxes[:, :2] + patches.boxes[:, 2:]) / 2
        centres = centres[patches.areas < self.small_area * height * width]
        ranked: list[tuple[float, Box]] = []
        for y0, y1 in pairwise(cuts(height, self.grid)):
            for x0, x1 in pairwise(cuts(width, self.grid)):
                inside = (centres >= (x0, y0)).all(1) & (centres < (x1, y1)).all(1)
                share = float(covered[y0:y1, x0:x1].mean())
                if inside.sum() >= self.small_patches or share <= self.coverage:
                    dx, dy = self.margin * (x1 - x0), self.margin * (y1 - y0)
                    window = clip_box((x0 - dx, y0 - dy, x1 + dx, y1 + dy), height, width)
                    ranked.append((inside.sum() / max(self.small_patches, 1) + 1 - share, window))
        ranked.sort(key=lambda item: -item[0])
        return [window for _, window in ranked[: self.max_windows]]

    @property
    def _detail(self) -> Generator:
        return self.detail or self.generator


def add_patches(
    patches: Patches,
    image: NDArray[np.uint8],
    windows: Sequence[Box],
    generator: Generator,
    first_source: int = 0,
    duplicate_iou: float = 0.7,
) -> Patches:
    """Return the patches of an image and those of enlarged windows, except truncated patches and duplicates.

    Args:
        patches: N patches, kept in front.
        image: (H, W, 3) RGB.
        windows: (x0, y0, x1, y1) in whole pixels, see `clip_box`.
        generator: resizes each window to its own input size.
        first_source: added to the source of new patches.
        duplicate_iou: mask IoU with another patch above which a new patch is a duplicate.
    """
    for window in windows:
        found = generate_in_window(generator, image, window, first_source)
        found = found.select(_is_whole(found, window) & (found.areas > 0))
        new = found.iou(patches).max(1, initial=0) <= duplicate_iou
        patches = Patches.concatenate([patches, found.select(new)])
    return patches


def clip_box(box: Sequence[float], height: int, width: int) -> Box:
    """Return the whole pixels inside the image that a box touches; raise CacheError if there are none."""
    x0, y0 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    if x0 >= x1 or y0 >= y1:
        raise CacheError(f"the box {tuple(box)} does not overlap the image of {width} x {height} pixels")
    return x0, y0, x1, y1


def _is_whole(patches: Patches, window: Box) -> NDArray[np.bool_]:
    """Return which patches do not touch a border of their window, except borders of the image, (N,)."""
    x0, y0, x1, y1 = window
    low = (x0 + (x0 > 0), y0 + (y0 > 0))
    high = (x1 - (x1 < patches.width), y1 - (y1 < patches.height))
    return (patches.boxes[:, :2] >= low).all(1) & (patches.boxes[:, 2:] <= high).all(1)
