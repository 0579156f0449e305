"""Ground-truth affinity G of entities and patches (METHOD 6; paper 3.2.3, Table 12), computed on RLEs.

Overlaps are measured in the original image: flip and resize do not change ratios of areas, and a crop is applied to
patches and entities before they are compared.
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

    def compare(self, patches: Patches, entities: Patches, mask_iop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Assign N patches to K entities.

        Args:
            patches: N patches.
            entities: K masks of the same image.
            mask_iop: (K, N) IoP of the masks.

        Returns:
            affinity, ignore: (K, N) bool each, never both True.
        """
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
    things, thing_classes = visible.things()
    regions, region_classes = visible.semantic()
    crowd_only, crowd_only_classes = visible.only_crowds()
    semantic = Patches.concatenate([regions, crowd_only])
    mask_iop = patches.iop(Patches.concatenate([things, semantic, visible.crowds()])).T
    thing_iop, semantic_iop, crowd_iop = np.split(mask_iop, [len(things), len(things) + len(semantic)])
    # A patch inside a crowd may be a part of one of its objects: neither positive nor negative.
    crowded = (crowd_iop > _CROWD_SHARE).any(axis=0)

    thing_affinity, thing_ignore = rules.instances.compare(patches, things, thing_iop)
    semantic_affinity, semantic_ignore = rules.semantic.compare(patches, semantic, semantic_iop)
    semantic_affinity[len(regions) :] = False  # a crowd is not an entity
    belongs = thing_affinity.any(axis=0) | semantic_affinity.any(axis=0)
    return Targets(
        instances=_entities(mapping, things, thing_classes, thing_affinity, thing_ignore, crowded),
        sem_segments=_entities(
            mapping,
            semantic,
            np.concatenate([region_classes, crowd_only_classes]),
            semantic_affinity,
            semantic_ignore,
            crowded,
        ),
        in_crowd=torch.from_numpy(crowded & ~belongs),
    )


def _entities(
    mapping: AxisAlignedMap,
    masks: Patches,
    classes: np.ndarray,
    affinity: np.ndarray,
    ignore: np.ndarray,
    crowded: np.ndarray,
) -> Instances:
    """Return the fields of :class:`Targets` for the entities that are visible in the input."""
    entities = Instances(
        mapping.input_size,
        gt_classes=torch.from_numpy(classes),
        gt_boxes=mapping.map_boxes(masks.boxes),
        gt_affinity=torch.from_numpy(affinity),
        gt_ignore=torch.from_numpy((ignore | crowded[None]) & ~affinity),
    )
    return entities[torch.from_numpy(masks.areas > 0)]


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
