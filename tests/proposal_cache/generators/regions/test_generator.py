"""RegionGenerator on a photo and on degenerate images."""

import json
from typing import Any

import numpy as np
import pytest
from skimage import data
from skimage.transform import resize

from proposal_cache import CacheError, Patches
from proposal_cache.generators.regions import RegionGenerator, RegionTree


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return (resize(data.astronaut(), (192, 256), anti_aliasing=True) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def patches(picture: np.ndarray) -> Patches:
    return RegionGenerator()(picture)


def test_number_and_sizes_of_patches(patches: Patches, picture: np.ndarray) -> None:
    assert 140 < len(patches) <= 220
    assert (patches.decode(slice(0, 140)).sum(0) == 1).all(), "the finest level must cover every pixel once"
    share = patches.areas / picture[..., 0].size
    assert share.min() < 0.002 < 0.1 < share.max()


def test_patches_are_nested_or_disjoint_and_no_duplicates(patches: Patches) -> None:
    iop, iou = patches.iop(patches), patches.iou(patches)
    assert not ((iop > 0) & (iop < 1) & (iop.T > 0) & (iop.T < 1)).any()
    assert iou[~np.eye(len(iou), dtype=bool)].max() <= RegionGenerator().duplicate_iou


def test_deterministic(picture: np.ndarray, patches: Patches) -> None:
    assert RegionGenerator()(picture).rles == patches.rles


def test_finds_objects_of_a_simple_scene() -> None:
    y, x = np.mgrid[:120, :160]
    disc, pole = np.hypot(y - 70, x - 50) < 20, (abs(x - 120) < 3) & (y > 20)
    image = np.full((120, 160, 3), (120, 170, 240), np.uint8)
    image[80:] = (60, 150, 60)
    image[disc], image[pole] = (220, 40, 40), (40, 40, 40)
    found = RegionGenerator()(image)
    iou = Patches.from_masks(np.stack([disc, pole])).iou(found).max(1)
    assert (iou > 0.7).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 3), (40, 30)])
@pytest.mark.parametrize("content", ["constant", "noise"])
def test_tiny_and_constant_images(size: tuple[int, int], content: str) -> None:
    rng = np.random.default_rng(0)
    image = np.full((*size, 3), 90, np.uint8) if content == "constant" else rng.integers(0, 256, (*size, 3), np.uint8)
    patches = RegionGenerator(seed_min_size=1)(image)
    assert patches.decode().any(0).all()
    if content == "constant":
        assert len(patches) == 1


def test_grey_image(picture: np.ndarray) -> None:
    grey = np.repeat(picture.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    assert len(RegionGenerator()(grey)) > 100


def test_max_pixels(picture: np.ndarray) -> None:
    patches = RegionGenerator(max_pixels=4000)(picture)
    assert (patches.height, patches.width) == picture.shape[:2]
    assert patches.decode().any(0).all()


def test_description() -> None:
    description = RegionGenerator(parts=7, contour=2.0).describe()
    assert json.loads(json.dumps(description)) == description
    assert description == RegionGenerator().describe() | {"name": "regions", "parts": 7, "contour": 2.0}


def test_rejects_other_arrays_than_rgb_images() -> None:
    with pytest.raises(CacheError, match=r"\(H, W, 3\) uint8"):
        RegionGenerator()(np.zeros((4, 4), np.uint8))
    with pytest.raises(CacheError, match="at least one pixel"):
        RegionGenerator()(np.zeros((0, 4, 3), np.uint8))


@pytest.mark.parametrize(("name", "value"), [("parts", 0), ("duplicate_iou", 0.0), ("max_pixels", 0)])
def test_rejects_invalid_parameters(name: str, value: Any) -> None:
    with pytest.raises(CacheError, match=name):
        RegionGenerator(**{name: value})


def test_tree_drops_near_duplicates() -> None:
    areas = np.array([10.0, 1.0, 8.0, 11.0, 19.0])  # leaves 0, 1, 2; 3 = 0 + 1; 4 = 3 + 2
    tree = RegionTree(areas, [(0, 1), (3, 2)])
    part_of_leaf, groups = tree.patches(parts=3, duplicate_iou=0.6)
    assert part_of_leaf.tolist() == [0, 1, 2]
    assert groups == [[0, 1, 2]]  # region 3 has IoU 10/11 with region 0
    part_of_leaf, groups = tree.patches(parts=2, duplicate_iou=0.6)
    assert part_of_leaf[0] == part_of_leaf[1] != part_of_leaf[2]
    assert groups == [[0, 1]]
