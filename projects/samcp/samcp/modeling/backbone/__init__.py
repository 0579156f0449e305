"""Backbones missing in Detectron2; importing this package registers them."""

from samcp.modeling.backbone.clip import CLIPBackbone, build_clip_fpn_backbone
from samcp.modeling.backbone.swin import build_swin_fpn_backbone
from samcp.modeling.backbone.timm import TimmBackbone, build_timm_fpn_backbone

__all__ = [
    "CLIPBackbone",
    "TimmBackbone",
    "build_clip_fpn_backbone",
    "build_swin_fpn_backbone",
    "build_timm_fpn_backbone",
]
