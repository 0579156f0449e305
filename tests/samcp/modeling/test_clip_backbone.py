"""CLIP image towers as frozen backbones, with tiny open_clip models."""

from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from samcp.errors import CheckpointError
from samcp.modeling.backbone.clip import DENSE, CLIPBackbone
from samcp.modeling.clip import load_clip
from tests.tiny_clip import make_tiny_clip


@pytest.fixture(scope="module", params=["convnext", "resnet"])
def tiny_clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_tiny_clip(tmp_path_factory.mktemp("clip"), request.param)


@pytest.fixture
def clip_cfg(toy_cfg: CfgNode, tiny_clip: tuple[str, str]) -> CfgNode:
    toy_cfg.MODEL.CLIP.NAME, toy_cfg.MODEL.CLIP.PRETRAINED = tiny_clip
    toy_cfg.MODEL.BACKBONE.NAME = "build_clip_fpn_backbone"
    return toy_cfg


def test_pooling_with_equal_weights_equals_clip_embedding(tiny_clip: tuple[str, str]) -> None:
    images = torch.randn(2, 3, 64, 64)
    backbone = CLIPBackbone(load_clip(*tiny_clip))
    model = open_clip.create_model(tiny_clip[0], pretrained=tiny_clip[1]).eval()
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True)
    for image, dense in enumerate(backbone(images)[DENSE]):
        pooled = backbone.pool(dense, torch.full((1, *dense.shape[1:]), 5.0))
        assert torch.allclose(pooled[0], expected[image], atol=1e-5)


def test_pooling_uses_only_cells_of_the_segment(tiny_clip: tuple[str, str]) -> None:
    backbone = CLIPBackbone(load_clip(*tiny_clip))
    dense = backbone(torch.randn(1, 3, 96, 128))[DENSE][0]
    weights = torch.zeros(3, *dense.shape[1:])
    weights[0, :2, :2] = torch.tensor([[4.0, 1.0], [0.0, 2.0]])
    weights[1] = 1
    before = backbone.pool(dense, weights)
    assert torch.allclose(before[:2].norm(dim=-1), torch.ones(2), atol=1e-5)
    assert (before[2] == 0).all(), "zero weights give a zero vector"
    assert torch.allclose(backbone.pool(dense, 3 * weights), before, atol=1e-5)
    changed = dense.clone()
    changed[:, 2, 3] = torch.randn(len(dense))
    changed[:, 1, 0] = torch.randn(len(dense))
    after = backbone.pool(changed, weights)
    assert torch.allclose(after[0], before[0], atol=1e-5)
    assert not torch.allclose(after[1], before[1], atol=1e-3)


def test_output_shapes_and_frozen_weights(clip_cfg: CfgNode) -> None:
    backbone = build_backbone(clip_cfg).train()
    before = {name: value.clone() for name, value in backbone.bottom_up.state_dict().items()}
    maps = backbone(torch.randn(2, 3, 64, 96))
    shapes = backbone.output_shape()
    assert [*shapes] == ["p2", "p3", "p4", "p5", "p6", DENSE]
    for name, shape in shapes.items():
        assert maps[name].shape == (2, shape.channels, -(-64 // shape.stride), -(-96 // shape.stride))
    sum(maps[f"p{i}"].square().mean() for i in range(2, 7)).backward()
    trained = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert trained
    assert all(name.startswith("fpn.") for name in trained)
    assert not any(p.requires_grad for p in backbone.bottom_up.parameters())
    assert not any(module.training for module in backbone.bottom_up.modules())
    assert all(torch.equal(value, before[name]) for name, value in backbone.bottom_up.state_dict().items())


def test_last_feature_map_equals_clip(tiny_clip: tuple[str, str]) -> None:
    """The feature map depends on the checkpoint and equals that of open_clip."""
    name, weights = tiny_clip
    images = torch.randn(1, 3, 64, 64)
    torch.manual_seed(1)
    other = CLIPBackbone(open_clip.create_model(name).eval())
    assert not torch.allclose(other(images)[DENSE], CLIPBackbone(load_clip(name, weights))(images)[DENSE], atol=1e-3)
    model = open_clip.create_model(name, pretrained=weights).eval().visual
    with torch.no_grad():
        maps = model.trunk.forward_features(images) if hasattr(model, "trunk") else None
    if maps is not None:
        assert torch.allclose(CLIPBackbone(load_clip(name, weights))(images)[DENSE], maps, atol=1e-5)


def test_rejects_vision_transformer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the image tower is a VisionTransformer .*use a ConvNeXt or a ResNet"):
        CLIPBackbone(load_clip(*make_tiny_clip(tmp_path, "transformer")))


def test_resnet_attention_pooling_at_other_sizes(tmp_path: Path) -> None:
    """Pooling equals open_clip's attention at its own size, and accepts other sizes."""
    backbone = CLIPBackbone(load_clip(*make_tiny_clip(tmp_path, "resnet")))
    dense = torch.randn(backbone.output_shape()[DENSE].channels, 2, 2)
    own = F.normalize(backbone.tower.attnpool(dense[None])[0], dim=-1)
    assert torch.allclose(backbone.pool(dense, torch.ones(1, 2, 2))[0], own, atol=1e-5)
    larger = torch.randn(backbone.output_shape()[DENSE].channels, 3, 5)
    assert backbone.pool(larger, torch.rand(4, 3, 5)).shape == (4, 24)
