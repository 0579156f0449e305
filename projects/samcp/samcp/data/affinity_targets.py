"""The ground-truth affinity G between entities and patches (METHOD 6; paper 3.2.3, Table 12), on RLEs.

Everything is measured in the original image. Flip and resize change no ratio of areas; what a crop hides is cut from
patches and entities before they are compared.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from detectron2.structures import Instances

from proposal_cache import Patches

from ..config import UsageError
from .ground_truth import GroundTruth
from .patch_transforms import AxisAlignedMap

_LOW_QUALITY_IOU = 0.5
_CROWD_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class AffinityRule:
    """When a patch belongs to an entity.

    Attributes:
        iop_threshold: tau; a patch is positive where its intersection over patch (IoP) exceeds it.
        ignore_threshold: from here to tau a pair is ignored in the affinity losses.
        box_iop, mask_iop: which IoPs count; of two the smaller one.
        low_quality_matches: add, to each entity, the patch with the best box IoU if that exceeds 0.5 and the box IoU of
            all patches the entity already has.
    """

    iop_threshold: float = 0.8
    ignore_threshold: float = 0.5
    box_iop: bool = True
    mask_iop: bool = True
    low_quality_matches: bool = True

    def __post_init__(self) -> None:
        if not (self.box_iop or self.mask_iop):
            raise UsageError("MODEL.SAMCP.TARGETS: BOX_IOP and MASK_IOP are both off; one of them must measure overlap")

    def __call__(self, patches: Patches, entities: Patches) -> tuple[np.ndarray, np.ndarray]:
        """Compare N patches with K entities.

        Returns:
            affinity, ignore: (K, N) bool each, never both true.
        """
        return self.compare(patches.boxes, entities.boxes, patches.iop(entities).T)

    def compare(
        self, patch_boxes: np.ndarray, entity_boxes: np.ndarray, mask_iop: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same of boxes (N, 4) and (K, 4), and the IoP of masks (K, N)."""
        intersection = _box_intersection(entity_boxes, patch_boxes)
        iop = np.ones(mask_iop.shape)
        if self.box_iop:
            iop = np.minimum(iop, _divide(intersection, _box_area(patch_boxes)[None]))
        if self.mask_iop:
            iop = np.minimum(iop, mask_iop)
        affinity = iop > self.iop_threshold
        if self.low_quality_matches and affinity.size:
            _add_low_quality_matches(affinity, _box_iou(intersection, entity_boxes, patch_boxes))
        return affinity, (iop >= self.ignore_threshold) & ~affinity


@dataclass(frozen=True)
class Targets:
    """What the model learns from one image with N patches.

    Attributes:
        instances: the K thing instances; Instances of the input's size with gt_classes (K,) int64, gt_boxes (K, 4) in
            input pixels, gt_affinity (K, N) bool (G) and gt_ignore (K, N) bool.
        sem_segments: the same fields, one row per class in the image; no patch belongs to a class of which there is
            but a crowd, so that it is taught neither present nor absent.
        in_crowd: (N,) bool, patches that lie mostly inside a crowd region and belong to nothing.
    """

    instances: Instances
    sem_segments: Instances
    in_crowd: torch.Tensor


def build_targets(
    patches: Patches, ground_truth: GroundTruth, *, rule: AffinityRule, mapping: AxisAlignedMap
) -> Targets:
    """The targets of the patches that the input shows.

    Args:
        patches: N patches, already cut to what the input shows.
        ground_truth: that of the whole image.
        rule: when a patch belongs to an entity.
        mapping: from the original image to the network's input.
    """
    visible = replace(ground_truth, masks=mapping.crop(ground_truth.masks))
    things, thing_classes = visible.things()
    regions, region_classes = visible.semantic()
    unsure, unsure_classes = visible.only_crowds()
    masks = Patches.concatenate([things, regions, unsure, visible.crowds()])
    mask_iop = patches.iop(masks).T
    entities = slice(len(things) + len(regions) + len(unsure))
    boxes, crowd_iop = masks.boxes[entities], mask_iop[entities.stop :]

    affinity, ignore = rule.compare(patches.boxes, boxes, mask_iop[entities])
    affinity[entities.stop - len(unsure) :] = False
    # A crowd is no entity, and a patch inside one may well be part of what it shows: neither yes nor no.
    crowded = (crowd_iop > _CROWD_SHARE).any(axis=0)
    ignore |= crowded[None] & ~affinity
    both = Instances(
        mapping.input_size,
        gt_classes=torch.from_numpy(np.concatenate([thing_classes, region_classes, unsure_classes])),
        gt_boxes=mapping.map_boxes(boxes),
        gt_affinity=torch.from_numpy(affinity),
        gt_ignore=torch.from_numpy(ignore),
    )
    seen = torch.from_numpy(masks.areas[entities] > 0)
    is_thing = torch.arange(len(both)) < len(things)
    return Targets(
        instances=both[seen & is_thing],
        sem_segments=both[seen & ~is_thing],
        in_crowd=torch.from_numpy(crowded & ~affinity.any(axis=0)),
    )


def _add_low_quality_matches(affinity: np.ndarray, iou: np.ndarray) -> None:
    """Set affinity (K, N), in place, where an entity's best box IoU (K, N) beats 0.5 and all patches it has."""
    entity, best = np.arange(len(iou)), iou.argmax(axis=1)
    to_beat = np.maximum(np.where(affinity, iou, 0.0).max(axis=1), _LOW_QUALITY_IOU)
    affinity[entity, best] |= iou[entity, best] > to_beat


def _box_intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas (len(a), len(b)) that XYXY boxes share."""
    low = np.maximum(a[:, None, :2], b[None, :, :2]).astype(np.float64)
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=-1)


def _box_area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1)


def _box_iou(intersection: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _divide(intersection, _box_area(a)[:, None] + _box_area(b)[None] - intersection)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where whole is 0 (a patch without pixels belongs to nothing)."""
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
