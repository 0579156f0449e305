"""Dataset mapper: from a record of a dataset to the model's input (METHOD 6 and 9)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Instances

from proposal_cache import PatchCache, Patches
from samcp.data.affinity_targets import TargetRules, build_targets
from samcp.data.ground_truth import read_ground_truth
from samcp.data.image_io import read_image
from samcp.data.patch_caches import read_patches
from samcp.data.patch_transforms import AxisAlignedMap, crop_patches, patch_instances
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary

# DETR's augmentation resizes the shorter side of an image to one of these before cropping.
_SIZES_BEFORE_CROP = (400, 500, 600)


@dataclass(frozen=True)
class AugmentedImage:
    """Image and its patches after augmentation.

    Attributes:
        image: (3, H, W) uint8.
        patches: Instances of the N visible patches, from :func:`patch_instances`.
        visible: the same patches at the size of the original image, cropped to the part that the input shows.
        mapping: from the original image to the augmented one.
    """

    image: torch.Tensor
    patches: Instances
    visible: Patches
    mapping: AxisAlignedMap


def augment_image(
    image: np.ndarray, patches: Patches, *, augmentations: T.AugmentationList, roi_size: int, min_patch_area: int
) -> AugmentedImage:
    """Apply the same augmentation to an image (H, W, 3) and its patches.

    Args:
        image: (H, W, 3) uint8.
        patches: of the image.
        augmentations, roi_size, min_patch_area: see :class:`SAMCPDatasetMapper`.
    """
    size = _size(image)
    augmented = T.AugInput(image)
    transforms = augmentations(augmented)
    mapping = AxisAlignedMap.from_transforms(transforms, size, _size(augmented.image))
    visible = crop_patches(patches, mapping, min_patch_area)
    pixels = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
    return AugmentedImage(pixels, patch_instances(visible, mapping, roi_size), visible, mapping)


class SAMCPDatasetMapper:
    """Callable that reads the image and patches of a record, augments both, and optionally computes the targets.

    It returns a dict:
        image: (3, H, W) uint8 tensor in ``image_format``.
        height, width, file_name, key and, if the record has one, image_id: of the original image.
        patches: Instances with patch_boxes, Boxes (N, 4) in input pixels, and roi_masks (N, roi_size, roi_size); with
            targets also in_crowd (N,).
        instances, sem_segments: with targets; see :class:`samcp.data.affinity_targets.Targets`.
        patch_rles: at test, the same patches in the same order, as Patches at the original image's size.

    It raises:
        DataError: the image or its ground truth is missing, unreadable or inconsistent.
        CacheError: the patches are missing, damaged, or of an image of another size.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        with_targets: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        caches: Mapping[str, PatchCache],
        roi_size: int,
        min_patch_area: int,
        rules: TargetRules,
        num_classes: int,
        ignore_label: int,
    ) -> None:
        """
        Args:
            is_train: whether the records are for training.
            with_targets: compute targets; at test, for the oracle and the evaluation of prompts.
            augmentations: applied in order; each must map upright rectangles to upright rectangles.
            image_format: a PIL mode or "BGR".
            caches: "patches_path" of a record -> cache.
            roi_size: side of a patch's RoI mask, in cells.
            min_patch_area: patches that a crop reduces to fewer original pixels are dropped.
            rules: assign patches to entities.
            num_classes, ignore_label: valid values of label PNGs.
        """
        self.is_train = is_train
        self.with_targets = with_targets
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.caches = caches
        self.roi_size = roi_size
        self.min_patch_area = min_patch_area
        self.rules = rules
        self.num_classes = num_classes
        self.ignore_label = ignore_label

    @classmethod
    def from_config(cls, cfg: CfgNode, *, is_train: bool, dataset_name: str) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "with_targets": is_train or cfg.TEST.ORACLE or cfg.MODEL.SAMCP.TEST.PROMPTS_ON,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "roi_size": cfg.MODEL.SAMCP.ROI_SIZE,
            "min_patch_area": cfg.INPUT.MIN_PATCH_AREA,
            "rules": TargetRules.from_config(cfg),
            "num_classes": len(Vocabulary.of_dataset(dataset_name).names),
            "ignore_label": MetadataCatalog.get(dataset_name).get("ignore_label", 255),
        }

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        image = read_image(record["file_name"], self.image_format)
        size = _size(image)
        _check_size(record, size)
        patches = read_patches(self.caches[record["patches_path"]], record, size)

        augmented = augment_image(
            image,
            patches,
            augmentations=self.augmentations,
            roi_size=self.roi_size,
            min_patch_area=self.min_patch_area,
        )
        sample = {name: record[name] for name in ("file_name", "key", "image_id") if name in record}
        sample |= {"height": size[0], "width": size[1]}
        sample |= {"image": augmented.image, "patches": augmented.patches}
        if self.with_targets:
            ground_truth = read_ground_truth(record, size, num_classes=self.num_classes, ignore_label=self.ignore_label)
            targets = build_targets(augmented.visible, ground_truth, rules=self.rules, mapping=augmented.mapping)
            sample["instances"], sample["sem_segments"] = targets.instances, targets.sem_segments
            sample["patches"].in_crowd = targets.in_crowd
        if not self.is_train:
            sample["patch_rles"] = augmented.visible
        return sample


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Build Detectron2's resize and flip, for training with INPUT.CROP and INPUT.COLOR_AUG_SSD between them.

    The crop is applied either with probability 0.5 before the resize, after a separate resize, as in DETR; or always
    and after the resize, as in Mask2Former (INPUT.CROP.AFTER_RESIZE).
    """
    augmentations = detection_utils.build_augmentation(cfg, is_train)
    if not is_train:
        return augmentations
    resize, *flip = augmentations
    before, after = [], []
    if cfg.INPUT.CROP.ENABLED:
        crop = T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
        if cfg.INPUT.CROP.AFTER_RESIZE:
            after.append(crop)
        else:
            shrink = T.ResizeShortestEdge(_SIZES_BEFORE_CROP, sample_style="choice")
            before.append(T.RandomApply(T.AugmentationList([shrink, crop]), prob=0.5))
    if cfg.INPUT.COLOR_AUG_SSD:
        from detectron2.projects.point_rend import ColorAugSSDTransform  # not above: it needs OpenCV

        after.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    return [*before, resize, *after, *flip]


def _size(image: np.ndarray) -> tuple[int, int]:
    """Return (height, width)."""
    return image.shape[0], image.shape[1]


def _check_size(record: Mapping[str, Any], size: tuple[int, int]) -> None:
    if "height" in record and (record["height"], record["width"]) != size:
        raise DataError(
            f"{record['file_name']}: is {size[0]} x {size[1]} pixels (height x width), but its dataset lists "
            f"{record['height']} x {record['width']}; correct the annotations"
        )
