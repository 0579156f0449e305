"""Model type lite of the SAM generator."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything import SamAutomaticMaskGenerator

from proposal_cache import CacheError
from proposal_cache.generators.contours.weights import load_weights
from proposal_cache.generators.sam import SamGenerator
from proposal_cache.generators.sam.lite import build_sam_lite
from proposal_cache.generators.sam.lite_weights import write_lite
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


def test_file_of_weights_omits_the_layers_of_the_contour_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_sam_lite(image_size=96)
    backbone = load_weights(None, "cpu").network.backbone.state_dict()
    sam.image_encoder.backbone.load_state_dict(backbone)
    path = tmp_path / "sam_lite.safetensors"
    write_lite(path, sam)
    saved = load_file(path)
    assert not any(name.startswith("image_encoder.backbone.") for name in saved)

    with torch.no_grad():
        sam.image_encoder.backbone.blocks[3][0].conv_pw.weight += 1
    write_lite(path, sam)
    assert set(load_file(path)) - set(saved) == {"image_encoder.backbone.blocks.3.0.conv_pw.weight"}
    loaded = SamGenerator.from_checkpoint("lite", path, **ALL_MASKS).sam
    for name, tensor in sam.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-3, atol=1e-3, msg=name)


def test_damaged_or_incomplete_file_of_weights_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "sam_lite.safetensors"
    path.write_bytes(b"damaged")
    with pytest.raises(CacheError, match=f"{path} is not a file of the model type lite, or damaged: "):
        SamGenerator.from_checkpoint("lite", path)
    tensors = {name: tensor.half() for name, tensor in build_sam_lite(96).state_dict().items()}
    save_file(tensors, path, {"contours.sha256": "0" * 64})
    with pytest.raises(CacheError, match="written with other weights of the generator contours than .*contours.safete"):
        SamGenerator.from_checkpoint("lite", path)


def test_other_model_types_are_rejected(checkpoint: Path) -> None:
    with pytest.raises(CacheError, match=f"{checkpoint} is a checkpoint of lite, not vit_b: use model type lite"):
        SamGenerator.from_checkpoint("vit_b", checkpoint)
    with pytest.raises(CacheError, match="missing.pth; train the model type lite with scripts/train_small_sam.py"):
        SamGenerator.from_checkpoint("lite", checkpoint.with_name("missing.pth"))
