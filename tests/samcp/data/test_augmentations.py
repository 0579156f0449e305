"""Augmentations built from a config."""

import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from samcp import add_samcp_config
from samcp.data.dataset_mapper import build_augmentations
from samcp.data.patch_transforms import AxisAlignedMap


def config(**overrides: object) -> CfgNode:
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.merge_from_list(
        [part for key, value in overrides.items() for part in (f"INPUT.{key.replace('__', '.')}", value)]
    )
    return cfg


def kinds(cfg: CfgNode, *, is_train: bool = True) -> list[type]:
    return [type(augmentation) for augmentation in build_augmentations(cfg, is_train)]


def test_resize_and_flip() -> None:
    assert kinds(config()) == [T.ResizeShortestEdge, T.RandomFlip]
    assert kinds(config(), is_train=False) == [T.ResizeShortestEdge]


def test_crop_before_or_after_the_resize() -> None:
    assert kinds(config(CROP__ENABLED=True)) == [T.RandomApply, T.ResizeShortestEdge, T.RandomFlip]
    after = config(CROP__ENABLED=True, CROP__AFTER_RESIZE=True, COLOR_AUG_SSD=True)
    assert kinds(after) == [T.ResizeShortestEdge, T.RandomCrop, ColorAugSSDTransform, T.RandomFlip]
    assert kinds(after, is_train=False) == [T.ResizeShortestEdge]


def test_colour_augmentation_keeps_geometry() -> None:
    cfg = config(COLOR_AUG_SSD=True, MIN_SIZE_TRAIN=(30,), RANDOM_FLIP="none")
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    augmented = [T.AugInput(image) for _ in range(5)]
    transforms = [T.AugmentationList(build_augmentations(cfg, is_train=True))(x) for x in augmented]
    assert any((x.image != image).any() for x in augmented)
    for transform in transforms:
        mapping = AxisAlignedMap.from_transforms(transform, (30, 40), (30, 40))
        assert (mapping.scale, mapping.offset) == ((1, 1), (0, 0))
