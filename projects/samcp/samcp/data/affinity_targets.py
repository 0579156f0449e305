"""The ground-truth affinity G between entities and patches (METHOD 6; paper 3.2.3, Table 12), on RLEs.

Everything is measured in the original image. Flip and resize change no ratio of areas; what a crop hides is cut from
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
    """Which patches belong to an entity.

    Attributes:
        iop_threshold: tau; a patch is positive where its intersection over patch (IoP) exceeds it.
        ignore_threshold: from here to tau a pair is ignored in the affinity losses; None ignores no pair.
        box_iop, mask_iop: which IoPs count; of two the smaller one.
        low_quality_matches: also add every patch whose IoU with the entity exceeds `low_quality_iou` and the IoU of all
            patches that the entity already has.
        low_quality_iou: see there.
        low_quality_by: "box" or "mask", which IoU that is.
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
            raise UsageError("MODEL.SAMCP.TARGETS: BOX_IOP and MASK_IOP are both off; one of them must measure overlap")

    def compare(self, patches: Patches, entities: Patches, mask_iop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compare N patches with K entities.

        Args:
            mask_iop: (K, N) IoP of their masks.

        Returns:
            affinity, ignore: (K, N) bool each, never both true.
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
        """The same for known overlaps.

        Args:
            iop: (K, N), what tau applies to.
            iou: (K, N), for low-quality matches.
        """
        affinity = iop > self.iop_threshold
        if self.low_quality_matches and affinity.size:
            to_beat = np.where(affinity, iou, 0.0).max(axis=1, keepdims=True)
            affinity |= iou > np.maximum(to_beat, self.low_quality_iou)
        if self.ignore_threshold is None:
            return affinity, np.zeros_like(affinity)
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


@dataclass(frozen=True, kw_only=True)
class TargetRules:
    """The rules for both kinds of entities. By default those of the released code; the paper has instances' alone."""

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
    """The targets of the patches that the input shows.

    Args:
        patches: N patches, already cut to what the input shows.
        ground_truth: that of the whole image.
        rules: when a patch belongs to an entity.
        mapping: from the original image to the network's input.
    """
    visible = replace(ground_truth, masks=mapping.crop(ground_truth.masks))
    things, thing_classes = visible.things()
    regions, region_classes = visible.semantic()
    crowd_only, crowd_only_classes = visible.only_crowds()
    semantic = Patches.concatenate([regions, crowd_only])
    mask_iop = patches.iop(Patches.concatenate([things, semantic, visible.crowds()])).T
    thing_iop, semantic_iop, crowd_iop = np.split(mask_iop, [len(things), len(things) + len(semantic)])
    # A patch inside a crowd may well be part of what it shows: neither yes nor no.
    crowded = (crowd_iop > _CROWD_SHARE).any(axis=0)

    thing_affinity, thing_ignore = rules.instances.compare(patches, things, thing_iop)
    semantic_affinity, semantic_ignore = rules.semantic.compare(patches, semantic, semantic_iop)
    semantic_affinity[len(regions) :] = False  # a crowd is no entity
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
    """The fields of :class:`Targets` for the entities that the input shows a pixel of."""
    entities = Instances(
        mapping.input_size,
        gt_classes=torch.from_numpy(classes),
        gt_boxes=mapping.map_boxes(masks.boxes),
        gt_affinity=torch.from_numpy(affinity),
        gt_ignore=torch.from_numpy((ignore | crowded[None]) & ~affinity),
    )
    return entities[torch.from_numpy(masks.areas > 0)]


def _box_intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas (len(a), len(b)) that XYXY boxes share."""
    low = np.maximum(a[:, None, :2], b[None, :, :2]).astype(np.float64)
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=-1)


def _box_area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1)


def _iou(intersection: np.ndarray, entity_areas: np.ndarray, patch_areas: np.ndarray) -> np.ndarray:
    """IoU (K, N) from areas of intersections (K, N), entities (K,) and patches (N,)."""
    return _divide(intersection, entity_areas[:, None] + patch_areas[None] - intersection)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where whole is 0 (a patch without pixels belongs to nothing)."""
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
