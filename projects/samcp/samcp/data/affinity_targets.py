"""Ground-truth affinity G of entities and patches (METHOD 6; paper 3.2.3, Table 12), computed on RLEs.

Overlaps are measured in the original image: flip and resize do not change ratios of areas, and a crop is applied to
patches and entities before they are compared. Entities are unions of segments; their overlaps are sums over the atomic
regions of the segments, so that no union has to be computed.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from proposal_cache import Patches
from samcp.data.ground_truth import GroundTruth
from samcp.data.patch_transforms import AxisAlignedMap
from samcp.errors import UsageError

_CROWD_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Entities:
    """K entities of an image with N patches.

    Attributes:
        classes: (K,) int64.
        boxes: (K, 4) XYXY, tight boxes in pixels; zeros for an entity without pixels.
        areas: (K,) in pixels.
        mask_iop: (K, N) intersection over patch (IoP) of the masks.
    """

    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    mask_iop: np.ndarray

    @classmethod
    def of_segments(cls, members: np.ndarray, classes: np.ndarray, segments: Patches, patches: Patches) -> "Entities":
        """Measure entities that are unions of segments.

        Args:
            members: (K, S) bool, the segments of each entity.
            classes: (K,) of the entities.
            segments: S masks, which may overlap.
            patches: N masks of the same image.
        """
        partition = segments.partition()
        covered = (members.astype(np.float32) @ partition.membership.T.astype(np.float32) > 0).astype(np.float64)
        intersection = covered @ partition.overlaps(patches.intervals, len(patches)).T
        visible = (members & (segments.areas > 0))[:, :, None]
        low = np.where(visible, segments.boxes[:, :2], np.inf).min(axis=1, initial=np.inf)
        high = np.where(visible, segments.boxes[:, 2:], 0).max(axis=1, initial=0)
        boxes = np.concatenate([np.where(np.isfinite(low), low, 0), high], axis=1).astype(np.float32)
        return cls(classes, boxes, covered @ partition.areas, _divide(intersection, patches.areas[None]))

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: slice) -> "Entities":
        return Entities(self.classes[index], self.boxes[index], self.areas[index], self.mask_iop[index])


@dataclass(frozen=True, kw_only=True)
class AffinityRule:
    """Rule that assigns patches to an entity.

    Attributes:
        iop_threshold: τ; a patch is positive if its intersection over patch (IoP) exceeds it.
        ignore_threshold: pairs with an IoP from here to τ are excluded from the affinity losses; None excludes none.
        box_iop, mask_iop: whether the IoP of boxes, and of masks, is used; of both the smaller.
        low_quality_matches: also assign every patch whose IoU with the entity exceeds ``low_quality_iou`` and the IoU
            of all patches assigned by the IoP.
        low_quality_iou: least IoU of a low-quality match.
        low_quality_by: "box" or "mask": the IoU that low-quality matches use.

    Raises:
        UsageError: box_iop and mask_iop are both off.
    """

    iop_threshold: float = 0.8
    ignore_threshold: float | None = 0.5
    box_iop: bool = True
    mask_iop: bool = True
    low_quality_matches: bool = True
    low_quality_iou: float = 0.5
    low_quality_by: str = "box"

    def __post_init__(self) -> None:
        if not (self.box_iop or self.mask_iop):
            raise UsageError("MODEL.SAMCP.TARGETS: BOX_IOP and MASK_IOP are both off; switch on at least one")

    def compare(self, patches: Patches, entities: Entities) -> tuple[np.ndarray, np.ndarray]:
        """Assign N patches to K entities of the same image.

        Returns:
            affinity, ignore: (K, N) bool each, never both True.
        """
        mask_iop = entities.mask_iop
        intersection = _box_intersection(entities.boxes, patches.boxes)
        iop = np.ones(mask_iop.shape)
        if self.box_iop:
            iop = np.minimum(iop, _divide(intersection, _box_area(patches.boxes)[None]))
        if self.mask_iop:
            iop = np.minimum(iop, mask_iop)
        if self.low_quality_by == "mask":
            iou = _iou(mask_iop * patches.areas, entities.areas, patches.areas)
        else:
            iou = _iou(intersection, _box_area(entities.boxes), _box_area(patches.boxes))
        return self.assign(iop, iou)

    def assign(self, iop: np.ndarray, iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Assign patches to entities by their overlaps.

        Args:
            iop: (K, N), compared with τ.
            iou: (K, N), for low-quality matches.

        Returns:
            affinity, ignore: (K, N) bool each, never both True.
        """
        affinity = iop > self.iop_threshold
        if self.low_quality_matches and affinity.size:
            assigned = np.where(affinity, iou, 0.0).max(axis=1, keepdims=True)
            affinity |= iou > np.maximum(assigned, self.low_quality_iou)
        if self.ignore_threshold is None:
            return affinity, np.zeros_like(affinity)
        return affinity, (iop >= self.ignore_threshold) & ~affinity


@dataclass(frozen=True)
class Targets:
    """Training targets of one image with N patches.

    Attributes:
        instances: the K thing instances; Instances of the input's size with gt_classes (K,) int64, gt_boxes (K, 4) in
            input pixels, gt_affinity (K, N) bool (G) and gt_ignore (K, N) bool.
        sem_segments: the same fields with one row per class in the image. A class of which the image has only crowds
            has no patches, and is excluded from the losses as neither present nor absent.
        in_crowd: (N,) bool, patches that lie mostly inside a crowd region and belong to no entity.
    """

    instances: Instances
    sem_segments: Instances
    in_crowd: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class TargetRules:
    """Rules for instances and for semantic entities; the defaults are those of the released code.

    The paper gives only the rule for instances.
    """

    instances: AffinityRule = AffinityRule()
    semantic: AffinityRule = AffinityRule(ignore_threshold=None, low_quality_iou=0.1, low_quality_by="mask")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "TargetRules":
        """Read MODEL.SAMCP.TARGETS."""
        options = cfg.MODEL.SAMCP.TARGETS
        instances = AffinityRule(
            iop_threshold=options.IOP_THRESHOLD,
            ignore_threshold=options.IGNORE_THRESHOLD,
            box_iop=options.BOX_IOP,
            mask_iop=options.MASK_IOP,
            low_quality_matches=options.LOW_QUALITY_MATCHES,
        )
        semantic = replace(
            instances,
            ignore_threshold=options.IGNORE_THRESHOLD if options.SEMANTIC_IGNORE else None,
            low_quality_iou=options.SEMANTIC_LOW_QUALITY_IOU,
            low_quality_by="mask",
        )
        return cls(instances=instances, semantic=semantic)


def build_targets(
    patches: Patches, ground_truth: GroundTruth, *, rules: TargetRules, mapping: AxisAlignedMap
) -> Targets:
    """Compute the targets of the patches of one network input.

    Args:
        patches: N patches, already cropped to the input.
        ground_truth: of the whole image.
        rules: assign patches to entities.
        mapping: from the original image to the network's input.
    """
    visible = replace(ground_truth, masks=mapping.crop(ground_truth.masks))
    members, classes = zip(*_groups(visible), strict=True)
    entities = Entities.of_segments(np.concatenate(members), np.concatenate(classes), visible.masks, patches)
    num_things, num_regions, num_crowd_regions, _ = map(len, classes)
    num_semantic = num_regions + num_crowd_regions
    things, semantic = entities[:num_things], entities[num_things : num_things + num_semantic]
    crowds = entities[num_things + num_semantic :]
    # A patch inside a crowd may be a part of one of its objects: neither positive nor negative.
    crowded = (crowds.mask_iop > _CROWD_SHARE).any(axis=0)

    thing_affinity, thing_ignore = rules.instances.compare(patches, things)
    semantic_affinity, semantic_ignore = rules.semantic.compare(patches, semantic)
    semantic_affinity[num_regions:] = False  # a crowd is not an entity
    belongs = thing_affinity.any(axis=0) | semantic_affinity.any(axis=0)
    return Targets(
        instances=_instances(mapping, things, thing_affinity, thing_ignore, crowded),
        sem_segments=_instances(mapping, semantic, semantic_affinity, semantic_ignore, crowded),
        in_crowd=torch.from_numpy(crowded & ~belongs),
    )


def _groups(truth: GroundTruth) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return segments (K, S) and classes (K,) of four groups of entities.

    They are the things; the union of each class without its crowds; that of each class of which only crowds are
    visible; and the crowds.
    """
    crowd, seen = truth.is_crowd, truth.masks.areas > 0
    thing = truth.is_thing & ~crowd
    region_classes = np.unique(truth.classes[~crowd])
    crowd_classes = np.setdiff1d(truth.classes[seen & crowd], truth.classes[seen & ~crowd])
    single = np.eye(len(truth.classes), dtype=bool)
    return [
        (single[thing], truth.classes[thing]),
        ((truth.classes == region_classes[:, None]) & ~crowd, region_classes),
        ((truth.classes == crowd_classes[:, None]) & crowd, crowd_classes),
        (single[crowd], truth.classes[crowd]),
    ]


def _instances(
    mapping: AxisAlignedMap, entities: Entities, affinity: np.ndarray, ignore: np.ndarray, crowded: np.ndarray
) -> Instances:
    """Return the fields of :class:`Targets` for the entities that are visible in the input."""
    instances = Instances(
        mapping.input_size,
        gt_classes=torch.from_numpy(entities.classes),
        gt_boxes=mapping.map_boxes(entities.boxes),
        gt_affinity=torch.from_numpy(affinity),
        gt_ignore=torch.from_numpy((ignore | crowded[None]) & ~affinity),
    )
    return instances[torch.from_numpy(entities.areas > 0)]


def _box_intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection areas (len(a), len(b)) of XYXY boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2]).astype(np.float64)
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=-1)


def _box_area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1)


def _iou(intersection: np.ndarray, entity_areas: np.ndarray, patch_areas: np.ndarray) -> np.ndarray:
    """Return the IoU (K, N) from areas of intersections (K, N), entities (K,) and patches (N,)."""
    return _divide(intersection, entity_areas[:, None] + patch_areas[None] - intersection)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, 0 where whole is 0: an empty patch belongs to no entity."""
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
