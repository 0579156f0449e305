"""SamAutomaticMaskGenerator compared with segment_anything's class, key by key."""

import inspect
from typing import Any

import numpy as np
import pytest
import segment_anything
from segment_anything.utils.amg import build_point_grid, rle_to_mask

from proposal_cache import SamAutomaticMaskGenerator, rle
from tests.proposal_cache.small_sam import small_sam

PARAMETERS: dict[str, Any] = {"points_per_side": 4, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.6}


def to_mask(segmentation: Any) -> np.ndarray:
    if isinstance(segmentation, np.ndarray):
        return segmentation
    if isinstance(segmentation["counts"], list):
        return rle_to_mask(segmentation)
    return rle.decode([segmentation["counts"].encode()], *segmentation["size"])[0]


@pytest.mark.parametrize(
    "parameters",
    [
        {"output_mode": "binary_mask", "points_per_batch": 7},
        {"output_mode": "uncompressed_rle", "min_mask_region_area": 30, "crop_n_layers": 1},
        {"output_mode": "coco_rle", "crop_n_layers": 1},
        {"points_per_side": None, "point_grids": [build_point_grid(4), build_point_grid(3)], "crop_n_layers": 1},
    ],
    ids=lambda parameters: ", ".join(parameters),
)
def test_equal_records(parameters: dict[str, Any]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)  # noise gives fragmented masks
    sam, parameters = small_sam(seed=1), PARAMETERS | parameters
    expected = segment_anything.SamAutomaticMaskGenerator(sam, **parameters).generate(image)
    records = SamAutomaticMaskGenerator(sam, **parameters).generate(image)
    assert len(records) == len(expected) >= 3
    for record, other in zip(records, expected, strict=True):
        assert list(record) == list(other)
        assert [type(value) for value in record.values()] == [type(value) for value in other.values()]
        segmentation, other_segmentation = record["segmentation"], other["segmentation"]
        mask, other_mask = to_mask(segmentation), to_mask(other_segmentation)
        assert (mask.shape, mask.dtype) == (other_mask.shape, other_mask.dtype)
        assert (mask & other_mask).sum() >= 0.999 * (mask | other_mask).sum()
        if isinstance(segmentation, dict):
            assert segmentation.keys() == other_segmentation.keys()
            assert segmentation["size"] == other_segmentation["size"]
            assert type(segmentation["counts"]) is type(other_segmentation["counts"])
        assert record["area"] == mask.sum() == pytest.approx(other["area"], abs=2)
        assert record["bbox"] == pytest.approx(other["bbox"], abs=1)
        assert record["predicted_iou"] == pytest.approx(other["predicted_iou"], rel=1e-4)
        assert record["stability_score"] == pytest.approx(other["stability_score"], rel=1e-3)
        assert record["point_coords"] == other["point_coords"]
        assert record["crop_box"] == other["crop_box"]


def test_equal_signature() -> None:
    ours, theirs = (
        [(p.name, p.default) for p in inspect.signature(cls).parameters.values()]
        for cls in (SamAutomaticMaskGenerator, segment_anything.SamAutomaticMaskGenerator)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points_per_side": None}, "exactly one of points_per_side and point_grids"),
        ({"point_grids": [build_point_grid(2)]}, "exactly one of points_per_side and point_grids"),
        ({"points_per_side": None, "point_grids": [build_point_grid(2)], "crop_n_layers": 1}, "needs one more"),
        ({"output_mode": "png"}, "output_mode is 'png', must be one of binary_mask"),
    ],
)
def test_rejects_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamAutomaticMaskGenerator(small_sam(), **arguments)
