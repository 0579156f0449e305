"""Partition compared with masks decoded to pixels."""

import numpy as np
import pytest

from proposal_cache import Patches
from tests.proposal_cache.random_masks import random_masks


@pytest.mark.parametrize(("count", "height", "width"), [(0, 3, 4), (1, 5, 7), (12, 20, 31), (200, 9, 8), (5, 1, 1)])
def test_regions_are_the_distinct_sets_of_masks(count: int, height: int, width: int) -> None:
    masks = random_masks(count, height, width)
    partition = Patches.from_masks(masks).partition()
    membership = partition.membership
    assert np.array_equal(partition.paint(membership).transpose(2, 0, 1), masks)
    assert len({row.tobytes() for row in membership}) == len(membership) > 0
    assert np.array_equal(np.unique(partition.region), np.arange(len(membership)))
    assert np.array_equal(np.bincount(partition.paint(np.arange(len(membership))).ravel()), partition.areas)


def test_overlaps_are_pixels_of_other_masks_in_each_region() -> None:
    masks, others = random_masks(7, 20, 31), random_masks(5, 20, 31)
    partition = Patches.from_masks(masks).partition()
    regions = partition.paint(np.arange(len(partition.membership)))
    expected = [np.bincount(regions[other], minlength=len(partition.membership)) for other in others]
    patches = Patches.from_masks(others)
    assert np.array_equal(partition.overlaps(patches.intervals, len(patches)), expected)
