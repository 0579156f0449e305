"""Partition compared with masks decoded to pixels."""

import numpy as np
import pytest

from proposal_cache import Patches
from tests.proposal_cache.random_masks import random_masks


@pytest.mark.parametrize(("count", "height", "width"), [(1, 5, 7), (12, 20, 31), (200, 9, 8), (5, 1, 1)])
def test_regions_are_the_distinct_sets_of_masks(count: int, height: int, width: int) -> None:
    masks = random_masks(count, height, width)
    partition = Patches.from_masks(masks).partition()
    membership = partition.membership
    assert np.array_equal(partition.paint(membership).transpose(2, 0, 1), masks)
    assert len(np.unique(membership, axis=0)) == len(membership)
    assert np.array_equal(np.unique(partition.region), np.arange(len(membership)))
    assert np.array_equal(np.bincount(partition.paint(np.arange(len(membership))).ravel()), partition.areas)


def test_without_masks_the_image_is_one_region() -> None:
    partition = Patches.empty(3, 4).partition()
    assert partition.membership.shape == (1, 0)
    assert (partition.paint(np.array([7])) == np.full((3, 4), 7)).all()
