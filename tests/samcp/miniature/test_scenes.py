"""Drawn scenes: exact masks, parts of unlike colours, occlusion, touching instances, and styles."""

from collections import defaultdict
from functools import cache

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, label

from samcp.miniature.scenes import STYLES, Canvas, DrawnScene, draw_scene
from samcp.miniature.world import CLASSES, COLORS, PARTS, SEEN, STUFF, THINGS, UNSEEN


@cache
def scenes(style: str, count: int = 20) -> list[DrawnScene]:
    return [draw_scene(np.random.default_rng([5, index]), STYLES[style]) for index in range(count)]


@pytest.mark.parametrize("style", STYLES)
def test_scene_depends_on_the_random_numbers_only(style: str) -> None:
    one, again = (draw_scene(np.random.default_rng([5, 0]), STYLES[style]) for _ in range(2))
    np.testing.assert_array_equal(one.image, again.image)
    assert one.image.shape == (256, 256, 3)
    assert one.image.dtype == np.uint8
    for drawn, same in zip(one.objects, again.objects, strict=True):
        assert (drawn.name, drawn.colors) == (same.name, same.colors)
        np.testing.assert_array_equal(drawn.mask, same.mask)


@pytest.mark.parametrize("style", STYLES)
def test_objects_partition_the_image_and_parts_their_thing(style: str) -> None:
    for scene in scenes(style):
        np.testing.assert_array_equal(np.sum([drawn.mask for drawn in scene.objects], axis=0), 1)
        for drawn in scene.objects:
            assert drawn.mask.any()
            if drawn.name in THINGS:
                assert set(drawn.parts) <= set(PARTS[drawn.name])
                assert all(mask.any() for mask in drawn.parts.values())
                np.testing.assert_array_equal(np.sum(list(drawn.parts.values()), axis=0), drawn.mask)
            else:
                assert not drawn.parts


def test_styles_have_their_classes() -> None:
    for style in ("train", "val", "open_val"):
        names = {drawn.name for scene in scenes(style) for drawn in scene.objects}
        assert names == set(CLASSES if style == "open_val" else SEEN)
    assert {"boat", "cat", "umbrella", "sand"} == set(UNSEEN) == set(CLASSES) - set(SEEN)


def test_color_of_a_part_does_not_tell_the_class() -> None:
    """Parts of a thing differ in colour, and each class occurs in nearly every colour."""
    used = defaultdict(set)
    for scene in scenes("open_val", 80):
        for drawn in scene.objects:
            assert len(set(drawn.colors.values())) == len(drawn.parts)
            used[drawn.name] |= set(drawn.colors.values())
    assert all(len(used[name]) >= len(COLORS) - 2 for name in THINGS), used


def test_image_shows_the_colors() -> None:
    """The hue of a part in daylight is that of its colour, up to light and noise."""
    for scene in scenes("val"):
        for drawn in scene.objects:
            for part, mask in drawn.parts.items():
                color = COLORS[drawn.colors[part]]
                if mask.sum() > 150:
                    shown = np.median(scene.image[mask], axis=0) / 255
                    assert np.corrcoef(shown, color)[0, 1] > 0.9 or np.ptp(color) < 0.1, (drawn.name, part)


def components(mask: np.ndarray) -> int:
    return label(mask, np.ones((3, 3)))[1]


def test_touching_instances_of_a_class_are_one_component() -> None:
    """Connected components of pixels of one class are therefore not its instances."""
    merged = instances = 0
    for scene in scenes("val"):
        for name in THINGS:
            masks = [drawn.mask for drawn in scene.objects if drawn.name == name]
            instances += len(masks)
            touching = [np.any(binary_dilation(one) & other) for one in masks for other in masks if one is not other]
            merged += sum(touching) // 2
            if any(touching):
                assert label(np.any(masks, axis=0), np.ones((3, 3)))[1] < len(masks) + sum(
                    label(m)[1] - 1 for m in masks
                )
    assert merged > 0.15 * instances


def test_things_hide_others_up_to_a_bound() -> None:
    def square(left: int, top: int, side: int) -> dict[str, np.ndarray]:
        mask = np.zeros((256, 256), bool)
        mask[top : top + side, left : left + side] = True
        return {"wall": mask}

    random = np.random.default_rng(0)
    canvas = Canvas(np.zeros((256, 256, 3)), {"sky": np.ones((256, 256), bool)}, STYLES["train"])
    assert canvas.add(random, "house", square(100, 100, 40), ["red"])
    assert not canvas.add(random, "house", square(120, 100, 40), ["blue"]), "half of the first would be hidden"
    assert canvas.add(random, "house", square(130, 100, 40), ["blue"])
    assert not canvas.add(random, "house", square(70, 100, 40), ["green"]), "with the second, half would be hidden"
    assert not canvas.add(random, "house", square(10, 10, 3), ["white"]), "too small"
    assert [(drawn.name, int(drawn.mask.sum())) for drawn in canvas.objects()] == [
        ("sky", 256**2 - 70 * 40), ("house", 30 * 40), ("house", 40 * 40)
    ]  # fmt: skip


def test_sizes_of_the_styles() -> None:
    sizes = {style: {d.size for s in scenes(style) for d in s.objects if d.parts} for style in ("val", "tiny_val")}
    assert sizes["val"] == {"tiny", "small", "medium", "large"}
    assert sizes["tiny_val"] <= {"tiny", "small"}


def test_camouflaged_things_resemble_their_ground() -> None:
    """The mean colour of a thing differs less from that of its surroundings than in daylight."""

    def contrast(style: str) -> float:
        found = []
        for scene in scenes(style):
            image = scene.image.astype(float)
            things = np.any([drawn.mask for drawn in scene.objects if drawn.parts], axis=0)
            for drawn in scene.objects:
                around = binary_dilation(drawn.mask, iterations=8) & ~things
                if drawn.parts and around.any():
                    found += [np.abs(image[m].mean(0) - image[around].mean(0)).mean() for m in drawn.parts.values()]
        return float(np.mean(found))

    assert contrast("camouflage_val") < 0.4 * contrast("val")


def test_night_is_darker_and_its_stuff_has_other_colors() -> None:
    def mean_colors(style: str) -> dict[str, np.ndarray]:
        found = defaultdict(list)
        for scene in scenes(style):
            for drawn in scene.objects:
                found[drawn.name].append(scene.image[drawn.mask].mean(0))
        return {name: np.mean(colors, axis=0) for name, colors in found.items()}

    day, night = mean_colors("open_val"), mean_colors("shifted_val")
    assert np.mean(list(night.values())) < 0.75 * np.mean(list(day.values()))
    for name in STUFF:
        assert np.abs(night[name] / night[name].sum() - day[name] / day[name].sum()).max() > 0.02, name
