"""Generators have the same patches on the GPU as on the CPU."""

import copy
from typing import Any

import numpy as np
import pytest
import skimage.data
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from proposal_cache import Patches
from proposal_cache.generators.contours import ContourGenerator
from proposal_cache.generators.sam import SamGenerator, SamParameters
from tests.device import DEVICE, needs_gpu
from tests.proposal_cache.small_sam import small_sam, smooth_image

PARAMETERS: dict[str, Any] = {"points_per_side": 8, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.7}


@pytest.fixture(scope="module")
def sam() -> Sam:
    return copy.deepcopy(small_sam()).to(DEVICE)


def generate(sam: Sam, **options: Any) -> Patches:
    return SamGenerator(sam, SamParameters(**PARAMETERS), **options)(smooth_image(121, 163))


def assert_same_masks(patches: Patches, others: Patches, *, iou: float = 0.995, missing: int = 0) -> None:
    """Check that each mask has a counterpart; `missing` of them may lack it, being at a threshold of the filters."""
    assert len(patches) > 10
    for first, second in ((patches, others), (others, patches)):
        assert (first.iou(second).max(axis=1) < iou).sum() <= missing


def test_sam_has_the_masks_of_segment_anything(sam: Sam) -> None:
    records = SamAutomaticMaskGenerator(sam, **PARAMETERS).generate(smooth_image(121, 163))
    masks = Patches.from_masks(np.stack([record["segmentation"] for record in records]))
    assert_same_masks(generate(sam), masks, missing=1)


def test_sam_has_the_masks_of_the_cpu(sam: Sam) -> None:
    assert_same_masks(generate(sam), generate(small_sam()), missing=1)


def test_sam_in_bfloat16_has_nearly_the_same_masks(sam: Sam) -> None:
    assert_same_masks(generate(sam, dtype="bfloat16"), generate(sam), iou=0.8, missing=8)


@needs_gpu
def test_compiled_sam_has_the_same_masks(sam: Sam) -> None:
    assert_same_masks(generate(sam, compile=True), generate(sam), missing=1)


def test_contours_have_the_regions_of_the_cpu() -> None:
    image = skimage.data.coffee()[:256, :320]
    assert_same_masks(ContourGenerator(device=DEVICE)(image), ContourGenerator()(image), missing=12)
