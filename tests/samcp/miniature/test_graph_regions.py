import numpy as np
import pytest

from samcp.miniature.graph_regions import GraphRegions


@pytest.fixture(scope="module")
def image():
    """Red, green and blue stripes with noise."""
    colors = np.repeat(np.eye(3)[:, None] * 160, 60, axis=1).reshape(180, 3)
    noise = np.random.default_rng(0).normal(0, 8, (120, 180, 3))
    return (colors + 40 + noise).clip(0, 255).astype(np.uint8)


def test_stripes_are_found_in_spite_of_noise(image):
    found = GraphRegions()(image).decode()
    for stripe in range(3):
        truth = np.zeros((120, 180), bool)
        truth[:, 60 * stripe : 60 * (stripe + 1)] = True
        assert max((mask & truth).sum() / (mask | truth).sum() for mask in found) > 0.8


def test_regions_of_every_scale_cover_the_image_without_duplicates(image):
    patches = GraphRegions()(image)
    assert patches.decode().any(0).all()
    assert (np.tril(patches.iou(patches), -1) <= 0.9).all()


def test_description_has_all_parameters():
    description = GraphRegions(scales=(10,)).describe()
    assert description == {"name": "graph_regions", "scales": [10], "smoothing": 0.2, "min_size": 30}
