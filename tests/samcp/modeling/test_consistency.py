"""Flip equivariance and scale invariance of the network.

Trained weights can distinguish left from right and large from small. Here the weights are made invariant, so that any
difference is an error of geometry: boxes, RoI masks, pooling, merged boxes or position embeddings.
"""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from PIL import Image
from torch import Tensor, nn

from proposal_cache import Patches
from samcp import SAMCP
from samcp.data.dataset_mapper import augment_image
from samcp.modeling.inference import Predictions

SIZE = (256, 384)  # multiples of 32, since padding would be on the other side after a flip


@BACKBONE_REGISTRY.register()
class PoolingBackbone(Backbone):
    """Backbone of average-pooled colours and one linear layer: p3 of an image at twice the size equals p2."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.channels = nn.Conv2d(3, 32, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {f"p{i}": self.channels(F.avg_pool2d(x, 2**i)) for i in range(2, 6)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(2, 6)}


@pytest.fixture
def model(toy_cfg: CfgNode) -> SAMCP:
    toy_cfg.MODEL.BACKBONE.NAME = "PoolingBackbone"
    torch.manual_seed(0)
    model = SAMCP(toy_cfg).eval()
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.affinity.patch_bias.normal_(std=0.2)
    return model


@torch.no_grad()
def make_flip_invariant(model: SAMCP) -> None:
    """Symmetrize the weights of the RoI embedding along x, and zero those of the box position along x."""
    first = model.patch_encoder.roi_embedding.mlp[0]
    cells = first.weight.unflatten(1, (-1, 7, 7))
    first.weight.copy_(((cells + cells.flip(-1)) / 2).flatten(1))
    for position in (model.patch_encoder.position, model.decoder.position):
        position.mlp[0].weight[:, : position.dim // 2] = 0


def random_image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def large_patches(count: int) -> Patches:
    """Return rectangles with ragged edges of at least 56 pixels, so that no FPN level is clamped to p2."""
    rng = np.random.default_rng(1)
    masks = np.zeros((count, *SIZE), dtype=bool)
    for mask in masks:
        h, w = rng.integers(64, 128), rng.integers(64, 192)
        y, x = rng.integers(0, SIZE[0] - h), rng.integers(0, SIZE[1] - w)
        mask[y : y + h, x : x + w] = rng.random((h, w)) < 0.8
    return Patches.from_masks(masks)


def predict(model: SAMCP, patches: Patches, *transforms: Any) -> Predictions:
    augmented = augment_image(
        random_image(), patches, augmentations=T.AugmentationList(transforms), roi_size=7, min_patch_area=0
    )
    with torch.no_grad():
        images = model.encode([{"image": augmented.image, "patches": augmented.patches}])
        [predictions] = model.predict(images, [patches])
    return predictions


def largest_difference(first: Predictions, second: Predictions) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


def test_flip_equivariance(model: SAMCP) -> None:
    make_flip_invariant(model)
    patches = large_patches(9)
    plain, flipped = predict(model, patches), predict(model, patches, T.HFlipTransform(SIZE[1]))
    assert plain.instance_affinity.std() > 1e-3, "affinities must differ between patches"
    assert largest_difference(plain, flipped) < 1e-4


def test_flip_of_image_only_changes_predictions(model: SAMCP) -> None:
    """Control: flipped patches on an image that is not flipped change the predictions."""
    make_flip_invariant(model)
    patches = large_patches(9)
    mirrored = Patches.from_masks(patches.decode()[:, :, ::-1])
    assert largest_difference(predict(model, patches), predict(model, mirrored)) > 1e-3


def test_scale_invariance(model: SAMCP) -> None:
    patches = large_patches(9)
    height, width = SIZE
    twice = T.ResizeTransform(height, width, 2 * height, 2 * width, interp=Image.NEAREST)
    assert largest_difference(predict(model, patches), predict(model, patches, twice)) < 1e-4
