"""CropGenerator and RefineGenerator."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from skimage.measure import label

from proposal_cache import CacheError, PatchCache, Patches
from proposal_cache.generators.crops import CropGenerator, crop_boxes, suppress_across
from proposal_cache.generators.refine import RefineGenerator
from tests.proposal_cache.tool import write_cache


@dataclass
class Spots:
    """Return connected bright areas that are at least `smallest` pixels wide after resizing the crop to 64 pixels."""

    smallest: float = 1.0

    def describe(self) -> dict[str, Any]:
        return {"name": "spots", "smallest": self.smallest}

    def __call__(self, image: np.ndarray) -> Patches:
        labels = label(image[..., 0] > 128)
        zoom = 64 / max(image.shape[:2])
        masks = [labels == i for i in range(1, labels.max() + 1)]
        masks = [m for m in masks if m.any(0).sum() * zoom >= self.smallest]
        return Patches.from_masks(np.array(masks, bool).reshape(len(masks), *image.shape[:2]))


def picture(height: int, width: int, *spots: tuple[int, int, int, int]) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for x0, y0, x1, y1 in spots:
        image[y0:y1, x0:x1] = 255
    return image


def test_crop_boxes() -> None:
    assert crop_boxes(9, 4, 2) == [(0, 0, 4, 4), (0, 4, 4, 9)]
    assert crop_boxes(1, 1, 3) == [(0, 0, 1, 1)]


def test_crops_position_and_source() -> None:
    image = picture(10, 20, (2, 3, 5, 6), (8, 1, 13, 4), (15, 5, 18, 9))
    patches = CropGenerator(Spots())(image)
    assert (patches.height, patches.width) == (10, 20)
    # the second spot is divided between the crops
    assert patches.boxes.tolist() == [[8, 1, 10, 4], [2, 3, 5, 6], [10, 1, 13, 4], [15, 5, 18, 9]]
    assert patches.source.tolist() == [0, 0, 1, 1]
    assert patches.decode().any(0).tolist() == (image[..., 0] > 0).tolist()


def test_crops_description_per_source(tmp_path: Any) -> None:
    generator = CropGenerator(CropGenerator(Spots()), crops=3)
    described = generator.describe()
    assert json.loads(json.dumps(described)) == described
    assert [d["crop"] for d in described] == [0, 0, 1, 1, 2, 2]
    assert [d["generator"]["crop"] for d in described] == [0, 1, 0, 1, 0, 1]
    path = write_cache(tmp_path / "cache", described, {"a": generator(picture(8, 40, (38, 2, 40, 4)))})
    assert PatchCache(path)["a"].source.tolist() == [5]


def test_box_nms_between_groups() -> None:
    twins = np.zeros((2, 8, 8), bool)
    twins[:, 2:5, 2:5] = True
    patches = Patches.from_masks(twins, predicted_iou=[0.5, 0.9])
    assert suppress_across(patches, np.array([0, 0]), 0.7).tolist() == [0, 1]
    assert suppress_across(patches, np.array([0, 1]), 0.7).tolist() == [1]  # the better one
    assert suppress_across(Patches.empty(3, 3), np.zeros(0, int), 0.7).tolist() == []


def test_crops_rejects_too_many_sources() -> None:
    with pytest.raises(CacheError, match="from 1 to 128, not 129"):
        CropGenerator(CropGenerator(Spots()), crops=129)


def test_refine_finds_small_objects() -> None:
    spots = [(2, 2, 20, 20), (51, 51, 52, 52), (54, 54, 55, 55)]
    image = picture(64, 64, *spots)
    generator = RefineGenerator(Spots(smallest=2), coverage=0.0, max_windows=16)
    patches = generator(image)
    assert patches.boxes.tolist() == [list(spot) for spot in spots]
    assert patches.source.tolist() == [0, 1, 1]


def test_refine_windows() -> None:
    small = [(x, 2, x + 2, 4) for x in (1, 5, 9, 13)]
    full = (16, 0, 64, 64)
    found = Spots()(picture(64, 64, *small, full))
    windows = RefineGenerator(Spots(), small_area=0.01, margin=0.0, coverage=0.9, max_windows=9).windows(found)
    assert windows == [(0, 0, 16, 16), (0, 16, 16, 32), (0, 32, 16, 48), (0, 48, 16, 64)]
    assert not RefineGenerator(Spots(), coverage=0.0).windows(Spots()(picture(8, 8, (0, 0, 8, 8))))


def test_refine_skips_duplicates_and_truncated_patches() -> None:
    square, bar = (2, 2, 10, 10), (12, 30, 60, 34)
    image = picture(64, 64, square, bar)
    box = (0, 0, 32, 40)  # contains the square, truncates the bar
    for smallest, expected in ((1, [square, bar]), (99, [square])):
        generator = RefineGenerator(Spots(smallest), detail=Spots(smallest=0), coverage=-1.0)
        assert generator.generate_with_boxes(image, [box]).boxes.tolist() == [list(spot) for spot in expected]


def test_refine_with_given_boxes() -> None:
    image = picture(64, 64, (2, 2, 20, 20), (51, 51, 52, 52))
    generator = RefineGenerator(Spots(smallest=2), coverage=0.0)
    large, small = [2, 2, 20, 20], [51, 51, 52, 52]
    assert generator(image).boxes.tolist() == [large]
    assert generator.generate_with_boxes(image, [(22, 22, 40, 40)]).boxes.tolist() == [large]
    assert generator.generate_with_boxes(image, [(40.5, 40, 100, 60)]).boxes.tolist() == [large, small]
    with pytest.raises(CacheError, match="does not overlap the image of 64 x 64"):
        generator.generate_with_boxes(image, [(70, 0, 80, 10)])


def test_refine_description() -> None:
    spots = Spots().describe()
    options = {"grid": 4, "small_area": 0.001, "small_patches": 4, "coverage": 0.5, "margin": 0.25, "max_windows": 4}
    options |= {"name": "refine", "duplicate_iou": 0.7, "boxes_sha256": "ab", "generator": spots}
    assert RefineGenerator(Spots(), boxes_sha256="ab").describe() == [spots, options]


def test_zero_patches() -> None:
    assert len(RefineGenerator(Spots())(picture(5, 3))) == 0
    assert len(CropGenerator(Spots())(picture(5, 3))) == 0
