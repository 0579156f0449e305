"""Patches from a hierarchy of regions of similar colour and texture; needs no weights."""

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import felzenszwalb

from proposal_cache import rle
from proposal_cache.errors import CacheError
from proposal_cache.generators.base import require_rgb
from proposal_cache.generators.regions.graph import IntArray, RegionGraph, dissimilarity, region_graph
from proposal_cache.patches import Patches

_VERSION = 1  # increased when the same parameters give other patches


@dataclass(frozen=True, kw_only=True)
class RegionGenerator:
    """Generator of hierarchical regions, for use without a SAM checkpoint.

    Starting from Felzenszwalb and Huttenlocher's segmentation, the two most similar neighbouring regions are merged
    until one is left. Patches are the regions at the level of `parts` regions, which cover every pixel once, and all
    later ones, except near-duplicates of a region they contain. Any two patches are nested or disjoint. Deterministic.

    >>> generator = RegionGenerator(parts=20)
    >>> patches = generator(image)  # (H, W, 3) uint8 RGB
    >>> patches.decode().any(axis=0).all()
    True

    Args:
        seed_scale, seed_sigma, seed_min_size: of the initial segmentation; see `skimage.segmentation.felzenszwalb`.
        parts: regions at the finest level.
        duplicate_iou: IoU with a contained region above which a merged region is dropped.
        colour, texture, contour: weights of the dissimilarity: mean Lab colour, histograms of Lab and of gradient
            direction, and the gradient along the common border.
        size_exponent: the dissimilarity is multiplied by the area of the smaller region to this power; larger values
            merge small regions earlier.
        max_pixels: larger images are downsampled to this size; patches have full size.
    """

    seed_scale: float = 15.0
    seed_sigma: float = 0.6
    seed_min_size: int = 12
    parts: int = 140
    duplicate_iou: float = 0.6
    colour: float = 1.0
    texture: float = 1.0
    contour: float = 1.0
    size_exponent: float = 0.6
    max_pixels: int = 400_000

    def __post_init__(self) -> None:
        for name in ("seed_min_size", "parts", "max_pixels"):
            if getattr(self, name) < 1:
                raise CacheError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.duplicate_iou <= 1:
            raise CacheError(f"duplicate_iou must be in (0, 1], not {self.duplicate_iou}")

    def describe(self) -> dict[str, Any]:
        """Return name and parameters."""
        return {"name": "regions", "version": _VERSION, **asdict(self)}

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        """Return the patches of an image (H, W, 3) RGB, at least one; the finest level comes first."""
        require_rgb(image)
        height, width = image.shape[:2]
        small = self._reduce(image)
        labels = felzenszwalb(small, scale=self.seed_scale, sigma=self.seed_sigma, min_size=self.seed_min_size)
        seeds = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
        tree = self._merge(region_graph(small, seeds))
        parts, groups = tree.patches(self.parts, self.duplicate_iou)
        _, rles = rle.encode_labels(_resize_nearest(parts[seeds], height, width))
        finest = Patches.from_rles(height, width, rles)
        return Patches.from_rles(height, width, [*rles, *finest.union(groups)])

    def _reduce(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        factor = (self.max_pixels / (height * width)) ** 0.5
        if factor >= 1:
            return image
        size = (max(1, int(width * factor)), max(1, int(height * factor)))
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))

    def _merge(self, graph: RegionGraph) -> "RegionTree":
        """Merge neighbouring regions, most similar first, until none are left."""
        leaves = len(graph.regions)
        regions = np.zeros((2 * leaves, graph.regions.shape[1]))
        regions[:leaves] = graph.regions
        neighbours: list[dict[int, NDArray[np.float64]]] = [{} for _ in range(leaves)]
        for border, a, b in zip(graph.borders, graph.first.tolist(), graph.second.tolist(), strict=True):
            neighbours[a][b] = neighbours[b][a] = border
        costs = self._cost(regions[graph.first], regions[graph.second], graph.borders)
        heap = list(zip(costs.tolist(), graph.first.tolist(), graph.second.tolist(), strict=True))
        heapq.heapify(heap)
        children: list[tuple[int, int]] = []
        alive = [True] * leaves
        while heap:
            _, a, b = heapq.heappop(heap)
            if not (alive[a] and alive[b]):
                continue
            new = leaves + len(children)
            children.append((a, b))
            alive[a] = alive[b] = False
            alive.append(True)
            regions[new] = regions[a] + regions[b]
            around = _merge_neighbours(neighbours, a, b)
            if around:
                names = list(around)
                borders = np.array(list(around.values()))
                costs = self._cost(regions[new], regions[names], borders)
                for name, cost in zip(names, costs.tolist(), strict=True):
                    neighbours[name][new] = around[name]
                    heapq.heappush(heap, (cost, name, new))
        return RegionTree(regions[: leaves + len(children), 0], children)

    def _cost(self, one: Any, others: Any, borders: Any) -> NDArray[np.float64]:
        weight = np.minimum(one[..., 0], others[:, 0]) ** self.size_exponent
        return dissimilarity(one, others, borders, self.colour, self.texture, self.contour) * weight


@dataclass(frozen=True)
class RegionTree:
    """Merge history of the region hierarchy: leaves are 0..L-1, merge t creates region L + t.

    Attributes:
        areas: (L + T,) pixels of each region.
        children: the two regions of each of T merges.
    """

    areas: NDArray[np.float64]
    children: Sequence[tuple[int, int]]

    def patches(self, parts: int, duplicate_iou: float) -> tuple[IntArray, list[list[int]]]:
        """Return the parts of the finest level, and the merged regions as groups of parts.

        Args:
            parts: regions at the finest level; fewer if there are fewer leaves.
            duplicate_iou: IoU with a contained region above which a merged region is dropped.

        Returns:
            The part of each leaf, (L,), and the parts in each merged region.
        """
        leaves = len(self.areas) - len(self.children)
        first_late = max(leaves, 2 * leaves - parts)
        top = np.arange(first_late)  # ancestor of each region at the finest level
        for region in range(first_late - 1, leaves - 1, -1):
            for child in self.children[region - leaves]:
                top[child] = top[region]
        names, part_of_leaf = np.unique(top[:leaves], return_inverse=True)
        members: dict[int, list[int]] = {int(name): [part] for part, name in enumerate(names)}
        largest_kept = {name: self.areas[name] for name in members}
        groups = []
        for region in range(first_late, len(self.areas)):
            a, b = self.children[region - leaves]
            members[region] = members[a] + members[b]
            largest_kept[region] = max(largest_kept[a], largest_kept[b])
            if largest_kept[region] <= duplicate_iou * self.areas[region]:
                largest_kept[region] = self.areas[region]
                groups.append(sorted(members[region]))
        return part_of_leaf, groups


def _merge_neighbours(
    neighbours: list[dict[int, NDArray[np.float64]]], a: int, b: int
) -> dict[int, NDArray[np.float64]]:
    """Append a region with the borders of a and b to the list, and return these borders by neighbour."""
    around, fewer = neighbours[a], neighbours[b]
    if len(fewer) > len(around):
        around, fewer = fewer, around
    for name, border in fewer.items():
        around[name] = around[name] + border if name in around else border
    del around[a], around[b]
    for name in around:
        neighbours[name].pop(a, None)
        neighbours[name].pop(b, None)
    neighbours[a] = neighbours[b] = {}
    neighbours.append(around)
    return around


def _resize_nearest(labels: IntArray, height: int, width: int) -> IntArray:
    """Resize a label map by nearest neighbour."""
    rows = (np.arange(height) + 0.5) * labels.shape[0] / height
    columns = (np.arange(width) + 0.5) * labels.shape[1] / width
    return labels[rows.astype(np.int64)[:, None], columns.astype(np.int64)]
