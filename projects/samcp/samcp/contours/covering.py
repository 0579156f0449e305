"""Covering of human segmentations by the levels of a hierarchy (Arbelaez et al., TPAMI 2011, Section 2.3)."""

from collections.abc import Sequence

import numpy as np

from proposal_cache.generators.contours.graph import FloatArray, IntArray
from proposal_cache.generators.contours.hierarchy import Hierarchy
from samcp.contours.dataset import LabelMap


def covering(
    hierarchy: Hierarchy, leaves: IntArray, segmentations: Sequence[LabelMap], heights: FloatArray
) -> FloatArray:
    """Return the mean covering of segmentations by the level at each height, in [0, 1].

    The covering of a segmentation is the mean over its pixels of the IoU of the pixel's region with the best region of
    the level.

    Args:
        hierarchy: of the regions.
        leaves: (H, W) leaf of each pixel.
        segmentations: regions (H, W) per annotator.
        heights: (S,) a level has all merges up to its height.
    """
    count = hierarchy.leaves
    overlaps = []
    for segmentation in segmentations:
        names, regions = np.unique(segmentation, return_inverse=True)
        codes = leaves.ravel() * len(names) + regions.ravel()
        overlaps.append(np.bincount(codes, minlength=count * len(names)).reshape(count, len(names)))
    return np.array(
        [
            np.mean([_covering(table, level) for table in overlaps])
            for level in (_level(hierarchy, height) for height in heights)
        ]
    )


def best_scales(coverings: FloatArray) -> tuple[float, float]:
    """Return the mean covering at the best common height (ODS), and at the best height of each image (OIS).

    Args:
        coverings: (images, S).
    """
    return float(coverings.mean(0).max()), float(coverings.max(1).mean())


def _level(hierarchy: Hierarchy, height: float) -> IntArray:
    """Return the region of each leaf at a height, numbered from 0."""
    leaves, merges = hierarchy.leaves, int(np.searchsorted(hierarchy.heights, height, side="right"))
    top = np.arange(leaves + merges)
    for merge in range(merges - 1, -1, -1):
        top[hierarchy.children[merge]] = top[leaves + merge]
    return np.unique(top[:leaves], return_inverse=True)[1]


def _covering(overlaps: IntArray, level: IntArray) -> float:
    table = np.zeros((int(level.max()) + 1, overlaps.shape[1]))
    np.add.at(table, level, overlaps)
    sizes, truth = table.sum(1, keepdims=True), table.sum(0)
    return float(((table / (sizes + truth - table)).max(0) * truth).sum() / truth.sum())
