"""Swin backbones, and weights in the official release's format against timm's Swin."""

import math
import os
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import FPN, build_backbone, build_model
from detectron2.modeling.backbone.swin import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn
from torch import Tensor

from samcp.errors import CheckpointError
from samcp.modeling.backbone.swin import load_swin_weights, resize_bias_table

EMBED, DEPTHS, HEADS, WINDOW = 8, (1, 2, 2, 2), (1, 2, 4, 8), 4


def release(window: int = WINDOW, depths: tuple[int, ...] = DEPTHS) -> dict[str, Tensor]:
    """Return the tensors of a tiny Swin under the names of the official release."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    weights = {"patch_embed.proj.weight": random(EMBED, 3, 4, 4), "patch_embed.proj.bias": random(EMBED)}
    weights |= {"patch_embed.norm.weight": random(EMBED), "patch_embed.norm.bias": random(EMBED)}
    for i, depth in enumerate(depths):
        dim = EMBED * 2**i
        for j in range(depth):
            shapes = {
                "norm1": (dim,),
                "attn.qkv": (3 * dim, dim),
                "attn.proj": (dim, dim),
                "norm2": (dim,),
                "mlp.fc1": (4 * dim, dim),
                "mlp.fc2": (dim, 4 * dim),
            }
            block = f"layers.{i}.blocks.{j}"
            for name, shape in shapes.items():
                weights[f"{block}.{name}.weight"] = random(*shape)
                weights[f"{block}.{name}.bias"] = random(shape[0])
            weights[f"{block}.attn.relative_position_bias_table"] = random((2 * window - 1) ** 2, HEADS[i])
            weights[f"{block}.attn.relative_position_index"] = torch.zeros(window**2, window**2, dtype=torch.long)
            if j % 2:
                weights[f"{block}.attn_mask"] = torch.zeros(4, window**2, window**2)
        if i < len(depths) - 1:
            weights[f"layers.{i}.downsample.reduction.weight"] = random(2 * dim, 4 * dim)
            weights[f"layers.{i}.downsample.norm.weight"] = random(4 * dim)
            weights[f"layers.{i}.downsample.norm.bias"] = random(4 * dim)
    weights |= {"norm.weight": random(8 * EMBED), "norm.bias": random(8 * EMBED)}
    return weights | {"head.weight": random(21841, 8 * EMBED), "head.bias": random(21841)}


def write(path: Path, weights: dict[str, Tensor]) -> str:
    torch.save({"model": weights}, path)
    return str(path)


@pytest.fixture
def body() -> SwinTransformer:
    torch.manual_seed(1)
    return SwinTransformer(embed_dim=EMBED, depths=DEPTHS, num_heads=HEADS, window_size=WINDOW, drop_path_rate=0).eval()


@pytest.fixture
def swin_cfg(toy_cfg: CfgNode) -> CfgNode:
    toy_cfg.merge_from_list(
        [
            *("MODEL.BACKBONE.NAME", "build_swin_fpn_backbone"),
            *("MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.FPN.IN_FEATURES", ["p0", "p1", "p2", "p3"]),
            *("MODEL.SWIN.EMBED_DIM", EMBED),
            *("MODEL.SWIN.DEPTHS", list(DEPTHS)),
            *("MODEL.SWIN.NUM_HEADS", list(HEADS)),
            *("MODEL.SWIN.WINDOW_SIZE", WINDOW),
            *("MODEL.SWIN.DROP_PATH_RATE", 0.0),
        ]
    )
    return toy_cfg


def test_release_equals_timm(body: SwinTransformer, tmp_path: Path) -> None:
    weights = release()
    load_swin_weights(body, write(tmp_path / "swin.pth", weights))
    size = 256  # no padding and no window larger than its feature map, where the implementations differ
    settings = {"img_size": size, "window_size": WINDOW, "embed_dim": EMBED, "depths": DEPTHS, "num_heads": HEADS}
    theirs = timm.create_model("swin_tiny_patch4_window7_224", **settings, num_classes=21841).eval()
    del weights["head.weight"], weights["head.bias"]
    converted = checkpoint_filter_fn(weights, theirs)
    assert not [k for k in theirs.load_state_dict(converted, strict=False).missing_keys if "head" not in k]
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        ours = body(image)
        x = theirs.patch_embed(image)
        for i, stage in enumerate(theirs.layers):
            # timm merges patches at the start of a stage, the release at the end of the previous stage.
            x = stage(x)
            expected = F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2)
            assert ours[f"p{i}"].std() > 0.1
            assert torch.allclose(ours[f"p{i}"], expected, atol=1e-4), f"stage {i}"


def test_resize_bias_table(tmp_path: Path) -> None:
    """Biases that are linear in the offsets remain linear in a larger window, except near its border."""
    offsets = torch.arange(-6.0, 7) / 7  # a window of 7
    plane = offsets[:, None] * 3 + offsets[None, :]
    resized = resize_bias_table(plane.reshape(-1, 1), 23**2).view(23, 23)  # a window of 12
    offsets_of_cells = (torch.arange(23) + 0.5) * 13 / 23 - 6.5  # offset of each new cell, in old cells
    expected = (offsets_of_cells[:, None] * 3 + offsets_of_cells[None, :]) / 7
    assert torch.allclose(resized[3:-3, 3:-3], expected[3:-3, 3:-3], atol=0.03)
    larger = SwinTransformer(embed_dim=EMBED, depths=DEPTHS, num_heads=HEADS, window_size=6)
    weights = release()
    load_swin_weights(larger, write(tmp_path / "swin.pth", weights))
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    assert torch.equal(larger.state_dict()[name], resize_bias_table(weights[name], 11**2))


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (32, 33)])
def test_fpn_strides(swin_cfg: CfgNode, size: tuple[int, int]) -> None:
    backbone = build_backbone(swin_cfg)
    assert isinstance(backbone, FPN)
    padded = [32 * math.ceil(s / 32) for s in size]
    image = F.pad(torch.randn(1, 3, *size), (0, padded[1] - size[1], 0, padded[0] - size[0]))
    levels = backbone(image)
    assert {name: tuple(x.shape[2:]) for name, x in levels.items() if name != "p6"} == {
        f"p{i}": (padded[0] // 2**i, padded[1] // 2**i) for i in range(2, 6)
    }


def test_odd_sizes(body: SwinTransformer) -> None:
    with torch.no_grad():
        maps = body(torch.randn(1, 3, 37, 50))
    assert [tuple(x.shape[2:]) for x in maps.values()] == [(10, 13), (5, 7), (3, 4), (2, 2)]


def test_training_and_inference(toy, swin_cfg: CfgNode) -> None:
    model = build_model(swin_cfg)
    sum(model([toy.input(6, {0: [1], 3: [2]}, size=(61, 83))]).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        assert model.eval()([toy.input(6, {}, size=(61, 83))])[0]["sem_seg"].shape == (61, 83)


def test_activation_checkpointing_keeps_gradients(swin_cfg: CfgNode) -> None:
    image = torch.randn(1, 3, 64, 64)

    def gradients(recompute: bool) -> dict[str, Tensor]:
        swin_cfg.MODEL.SWIN.ACTIVATION_CHECKPOINT = recompute
        torch.manual_seed(0)
        backbone = build_backbone(swin_cfg).train()
        sum(level.square().sum() for level in backbone(image).values()).backward()
        return {name: p.grad for name, p in backbone.named_parameters()}

    kept, recomputed = gradients(False), gradients(True)
    assert kept.keys() == recomputed.keys(), "parameter names must not change"
    for name, gradient in kept.items():
        assert torch.allclose(gradient, recomputed[name], rtol=1e-4, atol=1e-4), name


def test_freeze_at(swin_cfg: CfgNode) -> None:
    swin_cfg.MODEL.BACKBONE.FREEZE_AT = 2
    backbone = build_backbone(swin_cfg)
    frozen = {name.split(".")[1] + name.split(".")[2] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert {"patch_embedproj", "layers0"} <= frozen
    assert "layers1" not in frozen


def remove(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in release().items() if not key.startswith(name)}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (remove("layers.2.blocks.1.mlp.fc1"), r"2 of the \d+ tensors .*\(layers.2.blocks.1.mlp.fc1.weight, "),
        (release(depths=(1, 2, 1, 2)), r"13 of .* \(layers.2.blocks.1.norm1.weight, .*, \.\.\.\)"),
        (release() | {"layers.0.blocks.0.mlp.fc1.weight": torch.zeros(3, 3)}, r"the shapes of 1 tensors differ .*fc1"),
    ],
    ids=["incomplete", "fewer blocks", "another shape"],
)
def test_rejects_release_of_another_model(
    body: SwinTransformer, tmp_path: Path, weights: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"swin.pth: {message}"):
        load_swin_weights(body, write(tmp_path / "swin.pth", weights))


def test_rejects_other_files(body: SwinTransformer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone.pth: no such file; .*SwinTransformer/storage"):
        load_swin_weights(body, str(tmp_path / "gone.pth"))

    class Evil:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "victim"),))

    for content in ({"state_dict": {}}, {"model": Evil()}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=r"other.pth: not a Swin checkpoint"):
            load_swin_weights(body, str(tmp_path / "other.pth"))
    assert not (tmp_path / "victim").exists()
