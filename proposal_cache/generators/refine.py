"""A second, closer look at the regions of an image that need it (the paper's Figures 6 and 7, A.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError
from proposal_cache.generators.base import Generator, descriptions, require_rgb
from proposal_cache.generators.windows import Box, in_window, with_source
from proposal_cache.patches import Patches

_VISIBLE = 1  # pixels between a patch and the border of its window, from which on it is taken to be whole


@dataclass(frozen=True)
class RefineGenerator:
    """Runs a generator on the image, then again on enlarged crops where it found small patches or little at all.

    The image is divided into `grid` × `grid` cells. A cell needs a second look where at least `small_patches` patches
    are small, or at most `coverage` of its pixels lie in any patch. Its window is the cell with `margin` on all sides.
    As SAM sees every crop at its own full resolution, the same grid of points is `grid` times denser there. A new patch
    is added unless it is cut off by its window or nearly the same as one that is there.

    Args:
        generator: for the image.
        detail: for the windows; default: `generator`. For a `CropGenerator`, give the one that it runs: a window is a
            crop already.
        grid: cells per side.
        small_area: share of the image's pixels below which a patch is small.
        small_patches: see above; 0 looks at every cell.
        coverage: see above.
        margin: share of the cell's size that is added on each side of its window.
        max_windows: the cells in greatest need come first.
        duplicate_iou: mask IoU above which a new patch is a duplicate.
        boxes_sha256: digest in `describe` of the file of boxes that come with the images, if one does.
    """

    generator: Generator
    detail: Generator | None = None
    grid: int = 4
    small_area: float = 0.001
    small_patches: int = 4
    coverage: float = 0.5
    margin: float = 0.25
    max_windows: int = 4
    duplicate_iou: float = 0.7
    boxes_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.grid < 1 or self.max_windows < 1 or self.margin < 0:
            raise CacheError(
                f"grid {self.grid}, max_windows {self.max_windows}, margin {self.margin}: "
                "grid and max_windows must be 1 or more, margin 0 or more"
            )
        if len(self.describe()) > 256:
            raise CacheError(f"the generators have {len(self.describe())} sources together; a cache can name 256")

    def describe(self) -> list[dict[str, Any]]:
        """The generator's sources, and behind them those of the second look."""
        names = ("grid", "small_area", "small_patches", "coverage", "margin", "max_windows", "duplicate_iou")
        common = {"name": "refine", **{name: getattr(self, name) for name in (*names, "boxes_sha256")}}
        first = descriptions(self.generator)
        return [*first, *({**common, "generator": detail} for detail in descriptions(self._detail))]

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """The patches of an image (H, W, 3), RGB: those of the whole image first."""
        return self.look_into(image, ())

    def look_into(self, image: NDArray[np.uint8], boxes: Sequence[Sequence[float]]) -> Patches:
        """As a call, with a closer look into boxes (x0, y0, x1, y1) besides, before the windows that need one."""
        require_rgb(image)
        patches = self.generator(image)
        return self.refine(image, patches, [*boxes, *self.windows(patches)])

    def refine(self, image: NDArray[np.uint8], patches: Patches, boxes: Sequence[Sequence[float]]) -> Patches:
        """Adds what a closer look into given boxes finds.

        Args:
            image: (H, W, 3) RGB.
            patches: of it so far.
            boxes: (x0, y0, x1, y1) in pixels: `windows`, or those of things of interest.

        Raises:
            CacheError: for a box that does not overlap the image.
        """
        height, width = image.shape[:2]
        offset = len(descriptions(self.generator))
        for box in boxes:
            window = _clipped(box, height, width)
            found = in_window(self._detail, image, window)
            whole = _is_whole(found, window, height, width)
            found = found.select(whole & (found.areas > 0))
            if len(patches) and len(found):
                found = found.select(found.iou(patches).max(1) <= self.duplicate_iou)
            patches = Patches.concatenate([patches, with_source(found, found.source.astype(np.int64) + offset)])
        return patches

    def windows(self, patches: Patches) -> list[Box]:
        """The windows of the cells that need a closer look, in greatest need first."""
        height, width = patches.height, patches.width
        rows, columns = _cuts(height, self.grid), _cuts(width, self.grid)
        covered = np.zeros((height, width), bool)
        if len(patches):
            union = Patches.from_rles(height, width, patches.union([range(len(patches))]))
            covered = union.decode()[0]
        centres = (patches.boxes[:, :2] + patches.boxes[:, 2:]) / 2
        centres = centres[patches.areas < self.small_area * height * width]
        needs: list[tuple[float, Box]] = []
        for y0, y1 in pairwise(rows):
            for x0, x1 in pairwise(columns):
                inside = (centres >= (x0, y0)).all(1) & (centres < (x1, y1)).all(1)
                share = float(covered[y0:y1, x0:x1].mean())
                if inside.sum() >= self.small_patches or share <= self.coverage:
                    dx, dy = self.margin * (x1 - x0), self.margin * (y1 - y0)
                    window = _clipped((x0 - dx, y0 - dy, x1 + dx, y1 + dy), height, width)
                    needs.append((inside.sum() / max(self.small_patches, 1) + 1 - share, window))
        needs.sort(key=lambda need: -need[0])
        return [window for _, window in needs[: self.max_windows]]

    @property
    def _detail(self) -> Generator:
        return self.detail or self.generator


def _cuts(length: int, parts: int) -> list[int]:
    return np.unique(np.linspace(0, length, parts + 1).round().astype(int)).tolist()


def _clipped(box: Sequence[float], height: int, width: int) -> Box:
    x0, y0 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    if x0 >= x1 or y0 >= y1:
        raise CacheError(f"the box {tuple(box)} does not overlap the image of {width} x {height} pixels")
    return x0, y0, x1, y1


def _is_whole(patches: Patches, window: Box, height: int, width: int) -> NDArray[np.bool_]:
    """(N,) whether patches stay clear of those borders of their window that are not the image's."""
    x0, y0, x1, y1 = window
    low = np.array([x0 + _VISIBLE if x0 > 0 else 0, y0 + _VISIBLE if y0 > 0 else 0])
    high = np.array([x1 - _VISIBLE if x1 < width else width, y1 - _VISIBLE if y1 < height else height])
    return (patches.boxes[:, :2] >= low).all(1) & (patches.boxes[:, 2:] <= high).all(1)
