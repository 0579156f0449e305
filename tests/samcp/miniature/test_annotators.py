"""Label maps of scenes for the small SAM."""

import numpy as np

from samcp.contours.dataset import UNKNOWN
from samcp.miniature.annotators import DrawScenes, label_maps
from samcp.miniature.scenes import STYLES, draw_scene


def test_annotators_outline_objects_parts_and_pairs_of_parts() -> None:
    for seed in range(5):
        scene = draw_scene(np.random.default_rng(seed), STYLES["train"])
        whole, parts, pairs = label_maps(scene, np.random.default_rng(seed))
        for regions in (whole, parts, pairs):
            assert regions.shape == scene.image.shape[:2]
            assert regions.min() > UNKNOWN
        for drawn in scene.objects:
            assert not set(whole[drawn.mask]) & set(whole[~drawn.mask]), "a region leaves the object"
            for mask in drawn.parts.values():
                assert not set(parts[mask]) & set(parts[~mask]), "a region leaves the part"
        assert whole.max() < pairs.max() <= parts.max()


def test_draws_show_all_styles_and_are_reproducible() -> None:
    draw = DrawScenes()
    images = [draw(np.random.default_rng([0, index]))[0] for index in range(20)]
    np.testing.assert_array_equal(images[3], draw(np.random.default_rng([0, 3]))[0])
    brightness = [image.mean() for image in images]
    assert min(brightness) < 70 < 110 < max(brightness), "no night or no day"
