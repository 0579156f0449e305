"""Generator of patches from a learned boundary map; works on photographs without a download."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.segmentation import watershed

from proposal_cache import rle
from proposal_cache.errors import CacheError
from proposal_cache.generators.backbone import STRIDE
from proposal_cache.generators.base import require_rgb
from proposal_cache.generators.contours.graph import AREA, FloatArray, IntArray, RegionGraph, region_graph
from proposal_cache.generators.contours.hierarchy import Hierarchy, MergeCost, build_hierarchy, pair_features
from proposal_cache.generators.contours.weights import ContourWeights, load_weights
from proposal_cache.patches import Patches

Label = TypeVar("Label", bound=np.integer[Any])

_MAX_ENLARGEMENT = 2.0
_MARGIN = 2.0  # in `fit_borders`; without one, borders in photographs follow their noise
_BLOCK = 1 << 20  # pixels that `fit_borders` processes at a time, which bounds its memory
_VERSION = 2  # increased when the same parameters and weights give other patches


@dataclass(frozen=True, kw_only=True)
class ContourGenerator:
    """Generator of regions of a learned boundary map.

    A network predicts the probability that a person would draw a boundary, and an embedding of pixels. A watershed of
    the map gives small regions; neighbours are merged in the order of a learned cost until one region is left (an
    ultrametric contour map, Arbelaez et al., TPAMI 2011). Patches are the `parts` regions of one level of this
    hierarchy, which cover every pixel once, and the regions that are merged into others last, without near-duplicates.
    Any two patches are nested or disjoint. Deterministic on one machine.

    >>> generator = ContourGenerator()
    >>> patches = generator(image)  # (H, W, 3) uint8 RGB
    >>> patches.decode().any(axis=0).all()
    True

    Args:
        weights: file written by scripts/train_contours.py; None for the one that is shipped.
        device: of the network, such as "cpu" or "cuda".
        patches: maximum number of patches.
        parts: regions of the finest level; at most as many as `patches`.
        duplicate_iou: IoU with another patch above which a region is dropped.
        size_exponent: the cost of a merge is multiplied by the area of the smaller region to this power; larger values
            merge small regions earlier.
        gradient: weight of the image's gradient in the watershed, which places boundaries exactly.
        smoothing: standard deviation of the Gaussian filter before the watershed, in pixels.
        depth: depth of a minimum below which the watershed ignores it.
        pixels: images are resized to this number of pixels, but not enlarged more than twice; patches have full size.
    """

    weights: Path | None = None
    device: str = "cpu"
    patches: int = 240
    parts: int = 60
    duplicate_iou: float = 0.8
    size_exponent: float = 0.4
    gradient: float = 0.05
    smoothing: float = 0.8
    depth: float = 0.01
    pixels: int = 400_000
    _loaded: ContourWeights = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("patches", "parts", "pixels"):
            if getattr(self, name) < 1:
                raise CacheError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.duplicate_iou <= 1:
            raise CacheError(f"duplicate_iou must be in (0, 1], not {self.duplicate_iou}")
        object.__setattr__(self, "_loaded", load_weights(self.weights, self.device))

    def describe(self) -> dict[str, Any]:
        """Return name, parameters and the SHA-256 of the weights."""
        names = [entry.name for entry in fields(self) if entry.name not in ("weights", "device", "_loaded")]
        parameters = {name: getattr(self, name) for name in names}
        return {"name": "contours", "version": _VERSION, **parameters, "weights_sha256": self._loaded.sha256}

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """Return the patches of an image (H, W, 3) RGB, at least one; the finest level comes first."""
        require_rgb(image)
        height, width = image.shape[:2]
        graph, leaves = self.graph(image)
        hierarchy = build_hierarchy(graph, self.cost(leaves.size))
        chosen = select_regions(hierarchy, self.patches, min(self.parts, self.patches), self.duplicate_iou)
        leaves = leaves.astype(np.min_scalar_type(leaves.max()))  # a large image needs less memory
        leaves = fit_borders(resize_labels(leaves, height, width), image)
        return _to_patches(leaves, hierarchy, chosen)

    def graph(self, image: NDArray[np.uint8]) -> tuple[RegionGraph, IntArray]:
        """Return the graph of the smallest regions of an image (H, W, 3), and the region of each pixel, resized."""
        image = self._resize(image)
        boundary, embedding = self._loaded.predict(image)
        lab = np.ascontiguousarray(rgb2lab(image).astype(np.float32).transpose(2, 0, 1))
        leaves = self._over_segment(lab, boundary)
        return region_graph(lab, leaves, boundary, embedding), leaves

    def cost(self, pixels: int) -> MergeCost:
        """Return the cost of merges in an image of this size; see `build_hierarchy`."""

        def cost(one: FloatArray, others: FloatArray, borders: FloatArray) -> FloatArray:
            smaller = np.minimum(one[..., AREA], others[:, AREA])
            different = np.logaddexp(0, self._loaded.merge(pair_features(one, others, borders, pixels)))
            return different * smaller**self.size_exponent

        return cost

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_loaded"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def _resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        factor = min((self.pixels / (height * width)) ** 0.5, _MAX_ENLARGEMENT)
        size = tuple(max(1, round(side * factor / STRIDE)) * STRIDE for side in (width, height))
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))

    def _over_segment(self, lab: NDArray[np.float32], boundary: NDArray[np.float32]) -> IntArray:
        """Return the regions (H, W) of a watershed, from 0."""
        smooth = np.stack([ndimage.gaussian_filter(channel, 0.8) for channel in lab])
        dy, dx = (ndimage.correlate1d(smooth, [-0.5, 0, 0.5], axis=axis, mode="nearest") for axis in (1, 2))
        gradient = np.minimum(np.sqrt((dy * dy + dx * dx).sum(0)) / 10, 1)
        relief = ndimage.gaussian_filter(boundary + self.gradient * gradient, self.smoothing)
        return watershed(np.round(relief / self.depth).astype(np.int32)).astype(np.int64) - 1


def select_regions(hierarchy: Hierarchy, count: int, parts: int, duplicate_iou: float) -> IntArray:
    """Return the regions of the level with `parts` regions, then those that are merged last, up to `count` in all.

    A region is skipped if its IoU with one that is selected already exceeds `duplicate_iou`.
    """
    areas, parents, leaves = hierarchy.areas, hierarchy.parents, hierarchy.leaves
    first_late = max(leaves, 2 * leaves - parts)  # first region that is formed after the finest level
    level = np.flatnonzero((np.arange(len(areas)) < first_late) & ((parents >= first_late) | (parents < 0)))
    merged_at = np.where(parents < 0, len(areas), parents)
    selected = np.zeros(len(areas), bool)
    largest_inside = np.zeros(len(areas))  # area of the largest selected region inside each, itself included
    chosen: list[int] = []

    def is_duplicate(region: int) -> bool:
        if selected[region] or largest_inside[region] > duplicate_iou * areas[region]:
            return True
        outer = parents[region]
        while outer >= 0 and areas[region] > duplicate_iou * areas[outer]:
            if selected[outer]:
                return True
            outer = parents[outer]
        return False

    for region in [*level, *np.argsort(-merged_at, kind="stable")]:
        if len(chosen) >= len(level) and (len(chosen) >= count or is_duplicate(region)):
            continue
        selected[region] = True
        chosen.append(int(region))
        outer = region
        while outer >= 0 and largest_inside[outer] < areas[region]:
            largest_inside[outer] = areas[region]
            outer = parents[outer]
    return np.array(chosen, np.int64)


def _to_patches(leaves: IntArray, hierarchy: Hierarchy, chosen: IntArray) -> Patches:
    """Return the selected regions as patches; `leaves` (H, W) has the size of the image."""
    members: list[list[int]] = [[leaf] for leaf in range(hierarchy.leaves)]
    for a, b in hierarchy.children.tolist():
        members.append(members[a] + members[b])
    height, width = leaves.shape
    names, rles = rle.encode_labels(leaves)
    position = {int(name): i for i, name in enumerate(names)}  # some leaves vanish in a smaller image
    groups = [[position[leaf] for leaf in members[region] if leaf in position] for region in chosen]
    patches = Patches.from_rles(height, width, rle.union(rles, groups, height, width))
    return patches.select(patches.areas > 0)


def fit_borders(labels: NDArray[Label], image: NDArray[np.uint8]) -> NDArray[Label]:
    """Return labels (H, W) with pixels at borders moved to the adjacent region that clearly fits their colour better.

    The watershed places borders with an error of about one pixel, since the boundary map is smooth. A pixel is moved if
    the mean colour of another region is less than half as far from its own as that of its region.
    """
    height, width = labels.shape
    rows = max(1, _BLOCK // width)
    blocks = [slice(top, min(top + rows, height)) for top in range(0, height, rows)]
    count = int(labels.max()) + 1
    sums, areas = np.zeros((count, 3)), np.zeros(count)
    for block in blocks:
        names = labels[block].ravel()
        areas += np.bincount(names, minlength=count)
        for c in range(3):
            sums[:, c] += np.bincount(names, image[block, :, c].ravel(), count)
    colours = sums / np.maximum(areas, 1)[:, None]
    fitted = labels.copy()
    for block in blocks:
        padded = np.pad(
            labels[np.arange(block.start - 1, block.stop + 1).clip(0, height - 1)], ((0, 0), (1, 1)), "edge"
        )
        around = np.stack(
            [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        )
        y, x = np.nonzero((around != around[0]).any(0))
        names = around[:, y, x]
        distances = ((colours[names] - image[block][y, x]) ** 2).sum(-1)
        distances[0] /= _MARGIN**2
        fitted[block][y, x] = np.take_along_axis(names, distances.argmin(0)[None], axis=0)[0]
    return fitted


def resize_labels(labels: NDArray[Label], height: int, width: int) -> NDArray[Label]:
    """Resize a label map by nearest neighbour."""
    if labels.shape == (height, width):
        return labels
    rows = (np.arange(height) + 0.5) * labels.shape[0] / height
    columns = (np.arange(width) + 0.5) * labels.shape[1] / width
    return labels[rows.astype(np.int64)[:, None], columns.astype(np.int64)]
