"""Partition compared with masks decoded to pixels."""

import numpy as np
import pytest

from proposal_cache import Patches


def random_patches(count: int, height: int, width: int) -> Patches:
    """Rectangles with random holes."""
    rng = np.random.default_rng(count)
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = True
    masks &= rng.random(masks.shape) > 0.05
    return Patches.from_masks(masks)


@pytest.mark.parametrize(("count", "height", "width"), [(1, 5, 7), (12, 20, 31), (200, 9, 8), (4, 1, 1)])
def test_regions_are_the_distinct_sets_of_masks(count: int, height: int, width: int) -> None:
    patches = random_patches(count, height, width)
    partition = patches.partition()
    membership = partition.membership
    assert np.array_equal(partition.paint(membership).transpose(2, 0, 1), patches.decode())
    assert len(np.unique(membership, axis=0)) == len(membership)
    assert np.array_equal(np.unique(partition.region), np.arange(len(membership)))
    assert np.array_equal(np.bincount(partition.paint(np.arange(len(membership))).ravel()), partition.areas)


def test_without_masks_the_image_is_one_region() -> None:
    partition = Patches.empty(3, 4).partition()
    assert partition.membership.shape == (1, 0)
    assert (partition.paint(np.array([7])) == np.full((3, 4), 7)).all()


def test_full_and_empty_mask() -> None:
    partition = Patches.from_masks(np.stack([np.ones((3, 4), bool), np.zeros((3, 4), bool)])).partition()
    assert partition.membership.tolist() == [[True, False]]
