"""Backbones that Detectron2 does not have; importing this registers them."""

from .timm import TimmBackbone, build_timm_fpn_backbone

__all__ = ["TimmBackbone", "build_timm_fpn_backbone"]
