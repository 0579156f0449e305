"""Sam2Generator with a small SAM 2 of random weights; needs the extra `sam2`, which `make` installs."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.build_sam import build_sam2

from proposal_cache import CacheError
from proposal_cache.generators.sam2 import CONFIGS, Sam2Generator, Sam2Parameters

_NO_THRESHOLDS = Sam2Parameters(points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0)  # random masks pass


@pytest.fixture(scope="module")
def small_sam2() -> torch.nn.Module:
    torch.manual_seed(0)
    small = {
        "trunk.embed_dim": 32,
        "trunk.stages": [1, 1, 2, 1],
        "trunk.global_att_blocks": [3],
        "neck.backbone_channel_list": [256, 128, 64, 32],
    }
    overrides = [f"++model.image_encoder.{name}={value}" for name, value in small.items()]
    config = compose(CONFIGS["sam2.1_hiera_tiny"], overrides=overrides)
    OmegaConf.resolve(config)
    return instantiate(config.model, _recursive_=True).eval()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


def test_patches_of_an_image(small_sam2: torch.nn.Module, image: np.ndarray) -> None:
    patches = Sam2Generator(small_sam2, _NO_THRESHOLDS)(image)
    assert (patches.height, patches.width) == (48, 80)
    assert len(patches) > 0
    assert not np.isnan(patches.predicted_iou).any()
    assert not np.isnan(patches.stability_score).any()


def test_no_mask_passes(small_sam2: torch.nn.Module, image: np.ndarray) -> None:
    none = Sam2Parameters(points_per_side=1, pred_iou_thresh=2.0)
    assert len(Sam2Generator(small_sam2, none)(image)) == 0


def test_load_checkpoint(tmp_path: Path) -> None:
    weights = build_sam2(CONFIGS["sam2.1_hiera_tiny"], device="cpu").state_dict()
    torch.save({"model": weights}, tmp_path / "tiny.pt")
    generator = Sam2Generator.from_checkpoint("sam2.1_hiera_tiny", tmp_path / "tiny.pt", points_per_side=5)
    described = generator.describe()
    assert (described["name"], described["model_type"]) == ("sam2", "sam2.1_hiera_tiny")
    assert (described["points_per_side"], described["box_nms_thresh"]) == (5, 0.7)
    assert described["weights_sha256"] == hashlib.sha256((tmp_path / "tiny.pt").read_bytes()).hexdigest()
    with pytest.raises(CacheError, match=r"tiny\.pt does not match SAM2's sam2\.1_hiera_small"):
        Sam2Generator.from_checkpoint("sam2.1_hiera_small", tmp_path / "tiny.pt")


def test_invalid_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="choose one of sam2_hiera_tiny"):
        Sam2Generator.from_checkpoint("vit_h", tmp_path / "x.pt")
    with pytest.raises(CacheError, match=r"no SAM2 checkpoint at .*x\.pt"):
        Sam2Generator.from_checkpoint("sam2_hiera_tiny", tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"no weights")
    with pytest.raises(CacheError, match=r"x\.pt is not a SAM2 checkpoint, or damaged"):
        Sam2Generator.from_checkpoint("sam2_hiera_tiny", tmp_path / "x.pt")
    torch.save({"model": 5}, tmp_path / "x.pt")
    with pytest.raises(CacheError, match=r"x\.pt is not a SAM2 checkpoint; the weights of sam2_hiera_tiny are at"):
        Sam2Generator.from_checkpoint("sam2_hiera_tiny", tmp_path / "x.pt")
