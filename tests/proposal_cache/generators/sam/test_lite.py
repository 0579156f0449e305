"""Model type lite of the SAM generator."""

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator

from proposal_cache import CacheError
from proposal_cache.generators.sam import SamGenerator
from proposal_cache.generators.sam.lite import build_sam_lite
from tests.proposal_cache.small_sam import smooth_image

ALL_MASKS = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "sam_lite.pth"
    torch.save(build_sam_lite(image_size=96).state_dict(), path)
    return path


def test_same_masks_as_segment_anything(checkpoint: Path) -> None:
    generator = SamGenerator.from_checkpoint("lite", checkpoint, **ALL_MASKS)
    assert generator.describe()["model_type"] == "lite"
    assert generator.sam.image_encoder.img_size == 96  # read from the checkpoint
    image = smooth_image(120, 160)
    masks = generator(image).decode()
    expected = np.array(
        [r["segmentation"] for r in SamAutomaticMaskGenerator(generator.sam, **ALL_MASKS).generate(image)]
    )
    assert masks.shape == expected.shape == (27, 120, 160)
    assert (masks != expected).mean() < 1e-3


def test_other_model_types_are_rejected(checkpoint: Path) -> None:
    with pytest.raises(CacheError, match=f"{checkpoint} is a checkpoint of lite, not vit_b: use model type lite"):
        SamGenerator.from_checkpoint("vit_b", checkpoint)
    with pytest.raises(CacheError, match="missing.pth; train the model type lite with scripts/train_small_sam.py"):
        SamGenerator.from_checkpoint("lite", checkpoint.with_name("missing.pth"))
