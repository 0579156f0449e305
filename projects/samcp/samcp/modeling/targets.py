"""Training targets of the queries: class rows and affinity rows B (METHOD 6; paper 3.2.3, A.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

from samcp.modeling.affinity_decoder import DecoderOutput, merged_boxes
from samcp.modeling.denoising import DenoisingQueries
from samcp.modeling.matcher import HungarianMatcher
from samcp.modeling.patch_batch import PatchBatch
from samcp.modeling.queries import QuerySet


@dataclass(frozen=True)
class Entities:
    """Ground-truth instances, or semantic regions, of one image.

    Attributes:
        classes: (K,).
        boxes: (K, 4) XYXY normalised.
        affinity: (K, N) G in {0, 1}, float; N includes padding.
        weights: (K, N) float, 0 if the affinity is ignored or the patch is padding.
        buildable: (K,) bool, False if no set of patches covers the entity; it is then excluded from the loss.
    """

    classes: Tensor
    boxes: Tensor
    affinity: Tensor
    weights: Tensor
    buildable: Tensor


@dataclass(frozen=True)
class QueryTargets:
    """Targets of R queries of B images; entries of weight 0 are not supervised.

    Attributes:
        classes, class_weights: (B, R, C) float in {0, 1}.
        affinity, affinity_weights: (B, R, N) float in {0, 1}.
        positive: (B, R) bool, queries matched with an entity, M* in Eq. 2.
    """

    classes: Tensor
    class_weights: Tensor
    affinity: Tensor
    affinity_weights: Tensor
    positive: Tensor

    @property
    def self_affinity(self) -> Tensor:
        """(B, R) bool: unmatched queries, with their own patch as affinity target."""
        return (self.affinity_weights > 0).any(-1) & ~self.positive

    def rows(self, start: int, stop: int | None = None) -> "QueryTargets":
        """Return the targets of a range of queries."""
        return QueryTargets(*(value[:, start:stop] for value in vars(self).values()))

    @classmethod
    def zeros(cls, batch: int, rows: int, num_classes: int, num_patches: int, device: torch.device) -> "QueryTargets":
        """Return targets of weight 0."""
        return cls(
            classes=torch.zeros(batch, rows, num_classes, device=device),
            class_weights=torch.zeros(batch, rows, num_classes, device=device),
            affinity=torch.zeros(batch, rows, num_patches, device=device),
            affinity_weights=torch.zeros(batch, rows, num_patches, device=device),
            positive=torch.zeros(batch, rows, dtype=torch.bool, device=device),
        )


def gather_entities(segments: Instances, patches: PatchBatch, index: int, *, min_box_iou: float | None) -> Entities:
    """Convert the mapper's ``instances`` or ``sem_segments`` of image ``index`` to the padded shapes of the batch.

    Args:
        min_box_iou: an entity is buildable only if the IoU of its box and the bounding box of its patches exceeds this;
            None for semantic regions, which need not be compact.
    """
    device, padded_length = patches.boxes.device, patches.boxes.shape[1]
    affinity = torch.zeros(len(segments), padded_length, device=device)
    weights = torch.zeros(len(segments), padded_length, device=device)
    num_patches = segments.gt_affinity.shape[1]
    affinity[:, :num_patches] = segments.gt_affinity.to(device).float()
    weights[:, :num_patches] = (~segments.gt_ignore | segments.gt_affinity).to(device).float()
    boxes = segments.gt_boxes.tensor.to(device) / patches.scale[index]
    members = affinity > 0
    buildable = members.any(-1)
    if min_box_iou is not None:
        patch_boxes = merged_boxes(members.unsqueeze(0), patches.normalized_boxes[index : index + 1])[0]
        buildable = buildable & (matched_pairwise_iou(Boxes(patch_boxes), Boxes(boxes)) > min_box_iou)
    return Entities(segments.gt_classes.to(device), boxes, affinity, weights, buildable)


def gather_in_crowd(instances: Sequence[Instances], patches: PatchBatch) -> Tensor:
    """Return the mapper's ``in_crowd`` of all images, (B, N) bool."""
    in_crowd = torch.zeros_like(patches.valid)
    for row, image_patches in zip(in_crowd, instances, strict=True):
        row[: len(image_patches)] = image_patches.in_crowd.to(row.device)
    return in_crowd


class TargetBuilder:
    """Builder of the targets of semantic, instance and denoising queries.

    Args:
        matcher: for instance queries.
        self_affinity: train unmatched instance queries outside crowds to predict their own patch ("BG", Table 4).
        thing_loss_only: exclude stuff classes from the class loss of instance and denoising queries.
    """

    def __init__(self, *, matcher: HungarianMatcher, self_affinity: bool = True, thing_loss_only: bool = True) -> None:
        self.matcher = matcher
        self.self_affinity = self_affinity
        self.thing_loss_only = thing_loss_only

    def matching(
        self,
        *,
        output: DecoderOutput,
        class_logits: Tensor,
        queries: QuerySet,
        semantic_classes: Tensor,
        thing_classes: Tensor,
        patches: PatchBatch,
        in_crowd: Tensor,
        regions: Sequence[Entities],
        instances: Sequence[Entities],
    ) -> QueryTargets:
        """Return the targets of the semantic and the instance queries of one layer.

        Args:
            class_logits: (B, M, C) logits of this layer.
            semantic_classes: the class of each semantic query.
            thing_classes: the classes that instances may have.
            in_crowd: (B, N) bool, patches inside a crowd region; the queries of unmatched ones have no loss.
            regions, instances: semantic regions and instances of each image.
        """
        batch, num_patches = patches.valid.shape
        targets = QueryTargets.zeros(
            batch, queries.num_matching, class_logits.shape[-1], num_patches, class_logits.device
        )
        for i in range(batch):
            if not patches.valid[i].any():
                continue  # images without patches are excluded from the loss
            self._semantic(targets, i, semantic_classes, regions[i])
            if queries.num_instance:
                self._instance(targets, i, output, class_logits, queries, patches, in_crowd, instances[i])
        self._drop_stuff(targets.class_weights[:, queries.num_semantic :], thing_classes)
        return targets

    def denoising(
        self,
        *,
        denoising: DenoisingQueries,
        patches: PatchBatch,
        instances: Sequence[Entities],
        num_classes: int,
        thing_classes: Tensor,
    ) -> QueryTargets:
        """Return the targets of the denoising queries, the same for all layers.

        Entities that no set of patches covers keep their class loss, which does not depend on the patches, but have no
        affinity loss.
        """
        batch, rows = denoising.labels.shape
        targets = QueryTargets.zeros(batch, rows, num_classes, patches.valid.shape[1], patches.valid.device)
        for i, entities in enumerate(instances):
            if not patches.valid[i].any():
                continue  # see `matching`
            slots = denoising.valid[i].nonzero().squeeze(1)
            targets.class_weights[i, slots] = 1
            slots = slots[denoising.positive[slots]]
            entity = denoising.entity[slots]
            targets.classes[i, slots, entities.classes[entity]] = 1
            buildable = entities.buildable[entity]
            _assign(targets, i, slots[buildable], entities, entity[buildable])
        self._drop_stuff(targets.class_weights, thing_classes)
        return targets

    def _drop_stuff(self, class_weights: Tensor, thing_classes: Tensor) -> None:
        """Set the weights (B, R, C) of stuff classes to 0 in place, if `thing_loss_only`."""
        if self.thing_loss_only:
            is_thing = torch.zeros(class_weights.shape[-1], device=class_weights.device)
            is_thing[thing_classes] = 1
            class_weights *= is_thing

    def _semantic(self, targets: QueryTargets, i: int, semantic_classes: Tensor, regions: Entities) -> None:
        """Set the target of semantic queries for their own class, and the affinity of classes in the image."""
        rows = torch.arange(len(semantic_classes), device=semantic_classes.device)
        targets.class_weights[i, rows, semantic_classes] = 1
        query, entity = (semantic_classes[:, None] == regions.classes[None, :]).nonzero().unbind(1)
        buildable = regions.buildable[entity]
        targets.class_weights[i, query[~buildable]] = 0
        _assign(targets, i, query[buildable], regions, entity[buildable])

    def _instance(
        self,
        targets: QueryTargets,
        i: int,
        output: DecoderOutput,
        class_logits: Tensor,
        queries: QuerySet,
        patches: PatchBatch,
        in_crowd: Tensor,
        instances: Entities,
    ) -> None:
        first = queries.num_semantic
        valid = patches.valid[i].nonzero().squeeze(1)
        rows = first + valid
        query, entity = self.matcher(
            class_logits=class_logits[i, rows],
            affinity_logits=output.affinity_logits[i][rows][:, valid],
            boxes=output.boxes[i, rows],
            gt_classes=instances.classes,
            gt_affinity=instances.affinity[:, valid],
            gt_weights=instances.weights[:, valid],
            gt_boxes=instances.boxes,
        )
        unmatched = torch.ones_like(valid, dtype=torch.bool)
        unmatched[query] = False
        background = valid[unmatched]
        background = background[~in_crowd[i, background]]
        targets.class_weights[i, first + background] = 1
        if self.self_affinity:
            targets.affinity[i, first + background, background] = 1
            targets.affinity_weights[i, first + background] = patches.valid[i].float()
        buildable = instances.buildable[entity]
        targets.class_weights[i, rows[query[buildable]]] = 1
        _assign(targets, i, rows[query[buildable]], instances, entity[buildable])


def _assign(targets: QueryTargets, i: int, rows: Tensor, entities: Entities, entity: Tensor) -> None:
    """Set class and affinity targets of queries ``rows`` of image ``i`` to those of their entities."""
    targets.classes[i, rows, entities.classes[entity]] = 1
    targets.affinity[i, rows] = entities.affinity[entity]
    targets.affinity_weights[i, rows] = entities.weights[entity]
    targets.positive[i, rows] = True
