"""Hierarchy of regions: the neighbours most likely to be one object are merged first.

The cost of a merge is a small perceptron on features of both regions and their border, trained by
scripts/train_contours.py on images that people have segmented.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from proposal_cache.generators.contours.graph import (
    AREA,
    COLOUR_HISTOGRAMS,
    EMBEDDING,
    LENGTH,
    LIGHTNESS,
    SQUARE,
    STRENGTH,
    TEXTURE_HISTOGRAM,
    A,
    B,
    FloatArray,
    IntArray,
    RegionGraph,
)

MergeCost = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]


class Perceptron(NamedTuple):
    """Two linear layers with a ReLU between them: F features, U hidden units, one output.

    Attributes:
        hidden, hidden_bias: (F, U) and (U,).
        output, output_bias: (U,) and a number.
    """

    hidden: FloatArray
    hidden_bias: FloatArray
    output: FloatArray
    output_bias: float

    def __call__(self, features: FloatArray) -> FloatArray:
        """Return the logits (M,) of features (M, F)."""
        return np.maximum(features @ self.hidden + self.hidden_bias, 0) @ self.output + self.output_bias


@dataclass(frozen=True)
class Hierarchy:
    """Binary tree of regions: leaves are 0..L-1, merge t creates region L + t.

    Attributes:
        areas: (L + T,) pixels of each region.
        children: (T, 2) the two regions of each merge.
        heights: (T,) cost of each merge, at least that of all merges before.
    """

    areas: FloatArray
    children: IntArray
    heights: FloatArray

    @property
    def leaves(self) -> int:
        return len(self.areas) - len(self.children)

    @property
    def parents(self) -> IntArray:
        """(L + T,) the region that contains each region; -1 if none does."""
        parents = np.full(len(self.areas), -1)
        parents[self.children] = np.arange(self.leaves, len(self.areas))[:, None]
        return parents


def build_hierarchy(graph: RegionGraph, cost: MergeCost) -> Hierarchy:
    """Merge neighbouring regions, lowest cost first, until none are left.

    Args:
        graph: of the leaves.
        cost: function of the features of one region (F,) or M regions (M, F), M neighbours (M, F) and their common
            borders (M, 3); returns M costs.
    """
    leaves = len(graph.regions)
    regions = np.zeros((2 * leaves, graph.regions.shape[1]))
    regions[:leaves] = graph.regions
    neighbours: list[dict[int, FloatArray]] = [{} for _ in range(leaves)]
    for border, a, b in zip(graph.borders, graph.first.tolist(), graph.second.tolist(), strict=True):
        neighbours[a][b] = neighbours[b][a] = border
    costs = cost(regions[graph.first], regions[graph.second], graph.borders)
    heap = list(zip(costs.tolist(), graph.first.tolist(), graph.second.tolist(), strict=True))
    heapq.heapify(heap)
    children: list[tuple[int, int]] = []
    heights: list[float] = []
    alive = [True] * leaves
    while heap:
        height, a, b = heapq.heappop(heap)
        if not (alive[a] and alive[b]):
            continue
        new = leaves + len(children)
        children.append((a, b))
        heights.append(height)
        alive[a] = alive[b] = False
        alive.append(True)
        regions[new] = regions[a] + regions[b]
        around = _merge_neighbours(neighbours, a, b)
        if around:
            names = list(around)
            costs = cost(regions[new], regions[names], np.array(list(around.values())))
            for name, value in zip(names, costs.tolist(), strict=True):
                neighbours[name][new] = around[name]
                heapq.heappush(heap, (value, name, new))
    return Hierarchy(
        regions[: leaves + len(children), AREA],
        np.array(children, np.int64).reshape(-1, 2),
        np.maximum.accumulate(np.array(heights, np.float64)),
    )


def pair_features(one: FloatArray, others: FloatArray, borders: FloatArray, pixels: int) -> FloatArray:
    """Return the features of M pairs of neighbouring regions from which the cost of merging them is computed, (M, 11).

    Args:
        one: (F,) or (M, F) rows of `RegionGraph.regions`.
        others: (M, F) their neighbours.
        borders: (M, 3) the borders between them.
        pixels: number of pixels of the image.
    """
    smaller, larger = np.minimum(one[..., AREA], others[:, AREA]), np.maximum(one[..., AREA], others[:, AREA])
    gap = one / one[..., AREA, None] - others / others[:, AREA, None]  # between the means of each column
    embedding = np.square(gap[:, EMBEDDING]).sum(1)
    length = borders[:, LENGTH]
    features = np.empty((len(others), 11))
    features[:, 0] = borders[:, STRENGTH] / length
    features[:, 1] = np.sqrt(borders[:, SQUARE] / length)
    features[:, 2] = embedding / 4
    features[:, 3] = np.sqrt(embedding) / 2
    features[:, 4] = np.abs(gap[:, LIGHTNESS]) / 20
    features[:, 5] = np.hypot(gap[:, A], gap[:, B]) / 10
    features[:, 6] = np.abs(gap[:, COLOUR_HISTOGRAMS]).sum(1) / 2
    features[:, 7] = np.abs(gap[:, TEXTURE_HISTOGRAM]).sum(1) / 2
    features[:, 8] = np.log(smaller / pixels) / 4
    features[:, 9] = np.log(larger / pixels) / 4
    features[:, 10] = np.log(length / np.sqrt(smaller))
    return features


def _merge_neighbours(neighbours: list[dict[int, FloatArray]], a: int, b: int) -> dict[int, FloatArray]:
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
