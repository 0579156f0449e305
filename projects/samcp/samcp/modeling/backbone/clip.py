"""Image tower of a CLIP model as a frozen backbone (METHOD 8; paper B.3), as in FC-CLIP."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from samcp.errors import CheckpointError, naming_config_key
from samcp.modeling.clip import load_clip

DENSE = "res5"  # feature map for mask pooling


class CLIPBackbone(Backbone):
    """CLIP ConvNeXt or ResNet with feature maps res2 to res5, and CLIP's head for mask pooling from res5.

    The backbone is frozen and always in evaluation mode.

    Args:
        clip: an open_clip model; its image tower is copied.

    Raises:
        CheckpointError: the image tower is neither a ConvNeXt nor a ResNet.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.tower: Any = copy.deepcopy(clip.visual)
        self.register_buffer("logit_scale", clip.logit_scale.detach().exp())
        trunk: Any = getattr(self.tower, "trunk", None)
        if hasattr(trunk, "stages") and hasattr(trunk, "norm_pre"):
            channels = [info["num_chs"] for info in trunk.feature_info]
        elif hasattr(self.tower, "attnpool"):
            channels = [_last_norm(getattr(self.tower, f"layer{i}")).num_features for i in range(1, 5)]
        else:
            raise CheckpointError(
                f"the image tower is a {type(trunk or self.tower).__name__} without feature maps at four scales; use a "
                "ConvNeXt or a ResNet, such as convnext_large_d_320 or RN50"
            )
        self._out_features = [f"res{i}" for i in range(2, 6)]
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self._out_feature_strides = {name: 4 * 2**i for i, name in enumerate(self._out_features)}
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "CLIPBackbone":
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return feature maps by name of images (B, 3, H, W)."""
        if hasattr(self.tower, "trunk"):
            x, stages = self.tower.trunk.stem(x), self.tower.trunk.stages
        else:
            x, stages = self.tower.stem(x), [getattr(self.tower, f"layer{i}") for i in range(1, 5)]
        maps = {}
        for name, stage in zip(self._out_features, stages, strict=True):
            x = maps[name] = stage(x)
        if hasattr(self.tower, "trunk"):
            maps[DENSE] = self.tower.trunk.norm_pre(x)
        return maps

    @torch.no_grad()
    def pool(self, dense: Tensor, weights: Tensor) -> Tensor:
        """Return CLIP's embeddings of segments of an image (mask pooling).

        With all weights 1, the result is CLIP's embedding of the image.

        Args:
            dense: (C, h, w), feature map res5 of an image.
            weights: (Q, h, w), weight of each cell in each segment.

        Returns:
            (Q, dim) of unit length; zeros for segments without any weight.
        """
        means = mask_means(dense, weights)
        tokens, weights = dense.flatten(1).T, weights.flatten(1)
        if hasattr(self.tower, "trunk"):
            pooled = self.tower.head(self.tower.trunk.head(means[:, :, None, None]))
        else:
            pooled = _attend(self.tower.attnpool, tokens, means, weights, dense.shape[1:])
        return F.normalize(pooled.float(), dim=-1) * (weights.sum(1, keepdim=True) > 0)


class CLIPFPN(Backbone):
    """Trainable FPN on a frozen CLIP backbone, with CLIP's last feature map as an additional output for mask pooling.

    Args:
        bottom_up: the CLIP backbone.
        in_features, out_channels, norm: arguments of Detectron2's FPN.
    """

    def __init__(self, bottom_up: CLIPBackbone, in_features: list[str], out_channels: int, norm: str) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.fpn = FPN(_Passthrough(bottom_up.output_shape()), in_features, out_channels, norm, LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return feature maps p2, p3, .. and res5 of images (B, 3, H, W)."""
        maps = self.bottom_up(x)
        return {**self.fpn(maps), DENSE: maps[DENSE]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {**self.fpn.output_shape(), DENSE: self.bottom_up.output_shape()[DENSE]}

    @property
    def size_divisibility(self) -> int:
        return int(self.fpn.size_divisibility)

    @property
    def padding_constraints(self) -> dict[str, int]:
        return dict(self.fpn.padding_constraints)


def mask_means(dense: Tensor, weights: Tensor) -> Tensor:
    """Return the mean features (Q, C) of segments; arguments as in :meth:`CLIPBackbone.pool`."""
    weights = weights.flatten(1)
    return weights @ dense.flatten(1).T / weights.sum(1, keepdim=True).clamp(min=1e-6)


class _Passthrough(Backbone):
    """Backbone that returns its input, feature maps computed before."""

    def __init__(self, shapes: Mapping[str, ShapeSpec]) -> None:
        super().__init__()
        self._shapes = dict(shapes)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        return maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes


def _attend(attention: Any, tokens: Tensor, means: Tensor, weights: Tensor, size: torch.Size) -> Tensor:
    """Apply CLIP-ResNet's attention pooling to segments; the query is the mean of a segment, the keys are its tokens.

    Args:
        attention: open_clip's AttentionPool2d.
        tokens: (T, C) cells of the feature map.
        means: (Q, C) mean of each segment.
        weights: (Q, T) weight of each token in each segment, proportional to a value in [0, 1].
        size: (h, w) of the feature map, with T = h * w.
    """
    first, *grid = attention.positional_embedding.split([1, len(attention.positional_embedding) - 1])
    side = round(len(grid[0]) ** 0.5)
    position = grid[0].T.unflatten(1, (side, side))
    if (side, side) != tuple(size):
        position = F.interpolate(position[None], size=tuple(size), mode="bicubic", align_corners=False)[0]
    tokens, means = tokens + position.flatten(1).T, means + first

    heads = (attention.num_heads, -1)
    query = attention.q_proj(means).unflatten(-1, heads)
    key, value = (project(tokens).unflatten(-1, heads) for project in (attention.k_proj, attention.v_proj))
    mean_key, mean_value = (project(means).unflatten(-1, heads) for project in (attention.k_proj, attention.v_proj))
    log_weights = (weights / weights.amax(1, keepdim=True).clamp(min=1e-6)).log()  # -inf outside the segment
    logits = torch.einsum("qhd,thd->qht", query, key) / query.shape[-1] ** 0.5 + log_weights[:, None]
    mean_logit = (query * mean_key).sum(-1, keepdim=True) / query.shape[-1] ** 0.5
    probs = torch.cat([mean_logit, logits], dim=-1).softmax(-1)
    pooled = probs[..., :1] * mean_value + torch.einsum("qht,thd->qhd", probs[..., 1:], value)
    return attention.c_proj(pooled.flatten(1))


def _last_norm(layer: nn.Module) -> nn.BatchNorm2d:
    return [module for module in layer.modules() if isinstance(module, nn.BatchNorm2d)][-1]


@BACKBONE_REGISTRY.register()
def build_clip_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> CLIPFPN:
    """Return MODEL.CLIP's image tower with Detectron2's FPN on MODEL.FPN.IN_FEATURES, plus one coarser level."""
    with naming_config_key("MODEL.CLIP"):
        bottom_up = CLIPBackbone(load_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED))
    return CLIPFPN(
        bottom_up,
        in_features=list(cfg.MODEL.FPN.IN_FEATURES),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
    )
