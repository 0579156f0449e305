"""Training targets of the queries: class rows and affinity rows B (METHOD 6; paper 3.2.3, A.2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

from samcp.modeling.affinity_decoder import DecoderOutput, merged_boxes
from samcp.modeling.denoising import DenoisingQueries
from samcp.modeling.matcher import HungarianMatcher
from samcp.modeling.patch_batch import PatchBatch, copy_to
from samcp.modeling.queries import QuerySet


@dataclass(frozen=True)
class Entities:
    """Ground-truth instances, or semantic regions, of B images, padded to the largest number K (at least 1).

    Attributes:
        classes: (B, K).
        boxes: (B, K, 4) XYXY normalised.
        affinity: (B, K, N) G in {0, 1}, float.
        weights: (B, K, N) float, 0 if the affinity is ignored, or for padding.
        valid: (B, K) bool, False for padding.
        buildable: (B, K) bool, False if no set of patches covers the entity; it is then excluded from the loss.
        sizes: numbers of entities and of patches of each image.
    """

    classes: Tensor
    boxes: Tensor
    affinity: Tensor
    weights: Tensor
    valid: Tensor
    buildable: Tensor
    sizes: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class QueryTargets:
    """Targets of R queries of B images; entries of weight 0 are not supervised.

    Attributes:
        classes, class_weights: (B, R, C) float in {0, 1}.
        affinity, affinity_weights: (B, R, N) float in {0, 1}.
        positive: (B, R) bool, queries matched with an entity, M* in Eq. 2.
        self_affinity: (B, R) bool, unmatched queries, with their own patch as affinity target.
    """

    classes: Tensor
    class_weights: Tensor
    affinity: Tensor
    affinity_weights: Tensor
    positive: Tensor
    self_affinity: Tensor


def gather_entities(segments: Sequence[Instances], patches: PatchBatch, *, min_box_iou: float | None) -> Entities:
    """Pad the mapper's ``instances`` or ``sem_segments`` of all images.

    Args:
        min_box_iou: an entity is buildable only if the IoU of its box and the bounding box of its patches exceeds this;
            None for semantic regions, which need not be compact.
    """
    device, (batch, num_patches) = patches.valid.device, patches.valid.shape
    sizes = [(len(image), image.gt_affinity.shape[1]) for image in segments]
    most = max(1, *(k for k, _ in sizes))
    classes = torch.zeros(batch, most, dtype=torch.long)
    boxes = torch.zeros(batch, most, 4)
    affinity = torch.zeros(batch, most, num_patches)
    weights = torch.zeros(batch, most, num_patches)
    valid = torch.zeros(batch, most, dtype=torch.bool)
    for i, (image, (k, n)) in enumerate(zip(segments, sizes, strict=True)):
        classes[i, :k], boxes[i, :k], valid[i, :k] = image.gt_classes, image.gt_boxes.tensor, True
        affinity[i, :k, :n] = image.gt_affinity.float()
        weights[i, :k, :n] = (~image.gt_ignore | image.gt_affinity).float()
    classes, boxes, affinity, weights, valid = (copy_to(x, device) for x in (classes, boxes, affinity, weights, valid))
    boxes = boxes / patches.scale
    members = affinity > 0
    buildable = members.any(-1)
    if min_box_iou is not None:
        merged = merged_boxes(members, patches.normalized_boxes)
        iou = matched_pairwise_iou(Boxes(merged.flatten(0, 1)), Boxes(boxes.flatten(0, 1)))
        buildable = buildable & (iou.view_as(buildable) > min_box_iou)
    return Entities(classes, boxes, affinity, weights, valid, buildable, sizes)


def gather_in_crowd(instances: Sequence[Instances], patches: PatchBatch) -> Tensor:
    """Return the mapper's ``in_crowd`` of all images, (B, N) bool."""
    in_crowd = torch.zeros(patches.valid.shape, dtype=torch.bool)
    for row, image_patches in zip(in_crowd, instances, strict=True):
        row[: len(image_patches)] = image_patches.in_crowd
    return copy_to(in_crowd, patches.valid.device)


class TargetBuilder:
    """Builder of the targets of semantic, instance and denoising queries.

    Images without patches have no loss. The targets of all images are built at once without synchronizing with the
    GPU, except to copy the costs of the matching.

    Args:
        matcher: for instance queries.
        self_affinity: train unmatched instance queries outside crowds to predict their own patch ("BG", Table 4).
        thing_loss_only: exclude stuff classes from the class loss of instance and denoising queries.
    """

    def __init__(self, *, matcher: HungarianMatcher, self_affinity: bool = True, thing_loss_only: bool = True) -> None:
        self.matcher = matcher
        self.self_affinity = self_affinity
        self.thing_loss_only = thing_loss_only

    def semantic(
        self, *, semantic_classes: Tensor, regions: Entities, patches: PatchBatch, num_classes: int
    ) -> QueryTargets:
        """Return the targets of the semantic queries, the same for all layers.

        A query is trained for its own class only, and has an affinity loss if the image has the class.

        Args:
            semantic_classes: the class of each semantic query.
            regions: at most one per class.
        """
        of_class = (semantic_classes[:, None] == regions.classes[:, None]) & regions.valid[:, None]
        region = of_class.int().argmax(-1)
        buildable = regions.buildable.gather(1, region)
        present, has_patches = of_class.any(-1), patches.valid.any(-1, keepdim=True)
        own_class = semantic_classes.expand(len(region), -1)
        return _targets(
            regions,
            region,
            classified=present & buildable,
            positive=present & buildable,
            class_weights=_one_hot(own_class, has_patches & (buildable | ~present), num_classes),
        )

    def instance(
        self,
        *,
        outputs: Sequence[DecoderOutput],
        class_logits: Sequence[Tensor],
        queries: QuerySet,
        thing_classes: Tensor,
        patches: PatchBatch,
        in_crowd: Tensor,
        instances: Entities,
    ) -> list[QueryTargets]:
        """Return the targets of the instance queries of each layer.

        Args:
            outputs, class_logits: of all queries, one per layer.
            thing_classes: the classes that instances may have.
            in_crowd: (B, N) bool, patches inside a crowd region; the queries of unmatched ones have no loss.
        """
        rows = slice(queries.num_semantic, queries.num_matching)
        matches = self.matcher(
            class_logits=[logits.detach()[:, rows] for logits in class_logits],
            affinity_logits=[output.affinity_logits.detach()[:, rows] for output in outputs],
            boxes=[output.boxes.detach()[:, rows] for output in outputs],
            gt_classes=instances.classes,
            gt_affinity=instances.affinity,
            gt_weights=instances.weights,
            gt_boxes=instances.boxes,
            sizes=instances.sizes,
        )
        trained = self._trained_classes(thing_classes, class_logits[0].shape[-1])
        return [self._instance(match, trained, patches, in_crowd, instances) for match in matches]

    def denoising(
        self,
        *,
        denoising: DenoisingQueries,
        patches: PatchBatch,
        instances: Entities,
        num_classes: int,
        thing_classes: Tensor,
    ) -> QueryTargets:
        """Return the targets of the denoising queries, the same for all layers.

        Entities that no set of patches covers keep their class loss, which does not depend on the patches, but have no
        affinity loss.
        """
        entity = denoising.entity.expand(len(denoising.valid), -1)
        supervised = denoising.valid & patches.valid.any(-1, keepdim=True)
        positive = supervised & denoising.positive
        return _targets(
            instances,
            entity,
            classified=positive,
            positive=positive & instances.buildable.gather(1, entity),
            class_weights=supervised[..., None] * self._trained_classes(thing_classes, num_classes),
        )

    def _instance(
        self, match: Tensor, trained: Tensor, patches: PatchBatch, in_crowd: Tensor, instances: Entities
    ) -> QueryTargets:
        """Return the targets of one layer, from the matched instance of each query, (B, N), -1 if it has none."""
        entity = match.clamp(min=0)
        positive = (match >= 0) & instances.buildable.gather(1, entity)
        background = patches.valid & (match < 0) & ~in_crowd
        targets = _targets(
            instances,
            entity,
            classified=positive,
            positive=positive,
            class_weights=(positive | background)[..., None] * trained,
        )
        if not self.self_affinity:
            return targets
        return replace(
            targets,
            affinity=targets.affinity + torch.diag_embed(background.float()),
            affinity_weights=targets.affinity_weights + (background[..., None] & patches.valid[:, None]).float(),
            self_affinity=background,
        )

    def _trained_classes(self, thing_classes: Tensor, num_classes: int) -> Tensor:
        """Return the weights of the classes for instance and denoising queries, (C,) 0 or 1."""
        if not self.thing_loss_only:
            return torch.ones(num_classes, device=thing_classes.device)
        return torch.zeros(num_classes, device=thing_classes.device).index_fill(0, thing_classes, 1.0)


def _targets(
    entities: Entities, entity: Tensor, *, classified: Tensor, positive: Tensor, class_weights: Tensor
) -> QueryTargets:
    """Return targets of R queries from their entities.

    Args:
        entity: (B, R) index of the entity of each query; any if it has none.
        classified: (B, R) bool, queries with the class of their entity.
        positive: (B, R) bool, queries with the affinity of their entity.
        class_weights: (B, R, C).
    """
    rows = entity[..., None].expand(-1, -1, entities.affinity.shape[-1])
    return QueryTargets(
        classes=_one_hot(entities.classes.gather(1, entity), classified, class_weights.shape[-1]),
        class_weights=class_weights,
        affinity=entities.affinity.gather(1, rows) * positive[..., None],
        affinity_weights=entities.weights.gather(1, rows) * positive[..., None],
        positive=positive,
        self_affinity=torch.zeros_like(positive),
    )


def _one_hot(classes: Tensor, where: Tensor, num_classes: int) -> Tensor:
    """Return (B, R, C) float, 1 at the class of each query where `where` (B, R) is True."""
    zeros = torch.zeros(*classes.shape, num_classes, device=classes.device)
    return zeros.scatter(2, classes[..., None], where[..., None].float())
