"""Palette: distinct colours, also with colour-blindness, and shades of instances."""

import numpy as np
import pytest
from skimage.color import rgb2lab

from proposal_cache import Patches
from samcp.regions import Regions
from samcp.visualization.palette import class_colors, perceived, region_colors, shade


def regions(*boxes: tuple[int, int, int, int], classes: list[int]) -> Regions:
    """Return instances that are boxes (x0, y0, x1, y1) in an image of 20 x 40 pixels."""
    masks = np.zeros((len(boxes), 20, 40), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    count = len(boxes)
    return Regions(
        Patches.from_masks(masks), np.array(classes), np.ones(count, bool), np.zeros(count, bool), whole=False
    )


def perceived_distances(colors: np.ndarray) -> np.ndarray:
    """Return the distances (3, n, n) of n colours in normal, protanopic and deuteranopic vision.

    The unit is Lab's: a distance of 2.3 is just noticeable.
    """
    seen = perceived(colors)
    return np.linalg.norm(seen[:, :, None] - seen[:, None], axis=-1)


@pytest.mark.parametrize(("count", "least"), [(19, 15), (60, 8), (133, 5)])
def test_colours_differ_also_with_colour_blindness(count: int, least: float) -> None:
    distances = perceived_distances(class_colors(count))
    distances[:, np.arange(count), np.arange(count)] = np.inf
    assert distances.shape == (3, count, count)
    assert distances.min() > least


def test_red_and_green_are_close_with_colour_blindness() -> None:
    normal, protanopia, deuteranopia = perceived_distances(np.array([[0.8, 0.3, 0.1], [0.4, 0.5, 0.1]]))[:, 0, 1]
    assert normal > 2 * max(protanopia, deuteranopia)


def test_class_keeps_its_colour_if_classes_are_added() -> None:
    np.testing.assert_array_equal(class_colors(12), class_colors(60)[:12])
    assert class_colors(0).shape == (0, 3)


def test_shades_of_a_class_differ() -> None:
    for color in class_colors(20):
        shades = np.array([shade(color, number) for number in range(5)])
        np.testing.assert_allclose(shades[0], color, atol=1e-4)
        lightness = np.sort(rgb2lab(shades)[:, 0])
        assert np.diff(lightness).min() > 4


@pytest.mark.filterwarnings("error")
def test_shades_of_saturated_colours_give_no_warning() -> None:
    for color in class_colors(60):
        shades = np.array([shade(color, number) for number in range(20)])
        assert ((shades >= 0) & (shades <= 1)).all()


def test_matched_instances_have_the_same_colour() -> None:
    """The second prediction matches the first truth; the first prediction matches none, as its IoU is low."""
    truth = regions((0, 0, 10, 10), (20, 0, 40, 10), classes=[3, 3])
    predicted = regions((30, 8, 40, 20), (0, 0, 10, 9), classes=[3, 3])
    true_colors, colors = region_colors(truth), region_colors(predicted, truth)
    np.testing.assert_array_equal(colors[1], true_colors[0])
    assert all(np.abs(colors[0] - color).max() > 0.05 for color in true_colors)


def test_instances_of_different_classes_do_not_match() -> None:
    truth, predicted = regions((0, 0, 10, 10), classes=[3]), regions((0, 0, 10, 10), classes=[2])
    assert (region_colors(predicted, truth) == region_colors(predicted)).all()
