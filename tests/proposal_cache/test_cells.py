"""Cells against masks decoded pixel by pixel."""

import numpy as np
import pytest

from proposal_cache import Patches


def random_patches(count: int, height: int, width: int) -> Patches:
    rng = np.random.default_rng(count)
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = True
    masks &= rng.random(masks.shape) > 0.05  # holes
    return Patches.from_masks(masks)


@pytest.mark.parametrize(("count", "height", "width"), [(1, 5, 7), (12, 20, 31), (200, 9, 8), (4, 1, 1)])
def test_pixels_of_one_cell_lie_in_the_same_masks(count: int, height: int, width: int) -> None:
    patches = random_patches(count, height, width)
    cells = patches.cells()
    assert np.array_equal(cells.paint(cells.covers).transpose(2, 0, 1), patches.decode())
    assert len(np.unique(cells.covers, axis=0)) == len(cells.covers), "and no two cells lie in the same masks"
    assert np.array_equal(np.unique(cells.cell), np.arange(len(cells.covers)))
    assert np.array_equal(np.bincount(cells.paint(np.arange(len(cells.covers))).ravel()), cells.areas)


def test_no_masks_are_one_cell() -> None:
    cells = Patches.empty(3, 4).cells()
    assert cells.covers.shape == (1, 0)
    assert (cells.paint(np.array([7])) == np.full((3, 4), 7)).all()


def test_a_mask_that_fills_the_image_and_an_empty_one() -> None:
    cells = Patches.from_masks(np.stack([np.ones((3, 4), bool), np.zeros((3, 4), bool)])).cells()
    assert cells.covers.tolist() == [[True, False]]
