"""Segmentations and prompt scores from query predictions (METHOD 8; paper 4.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from proposal_cache import Patches
from samcp.modeling.affinity_decoder import normalize_affinity
from samcp.modeling.overlaps import (
    UNLABELED,
    paint_best_class,
    paint_entities,
    paint_things_first,
    region_scores,
    vote_for_entities,
)
from samcp.structures import RLEMasks

MERGE_RULES = ("mean", "paper", "nested")


@dataclass(frozen=True)
class Predictions:
    """Query predictions for one image with N patches. Tensors on any device.

    Attributes:
        semantic_classes: (S,) class of each semantic query.
        semantic_scores: (S,) probability that the class is in the image.
        semantic_affinity: (S, N) in [0, 1].
        instance_scores: (M, C) probability of each class; only those of things are used.
        instance_affinity: (M, N) in [0, 1].
    """

    semantic_classes: Tensor
    semantic_scores: Tensor
    semantic_affinity: Tensor
    instance_scores: Tensor
    instance_affinity: Tensor


class Inference:
    """Turn :class:`Predictions` into Detectron2's outputs, at the patches' resolution.

    Args:
        thing_classes: indices of the classes whose entities are instances.
        num_classes: C.
        semantic_on, instance_on, panoptic_on: which outputs to make.
        top_instances: how many (query, class) pairs become instances, and how many queries panoptic entities.
        semantic_threshold: minimum score of a pixel's class, by the rules "mean" and "nested" of :meth:`semantic` and
            "nested" of :meth:`panoptic`.
        score_threshold, affinity_threshold, overlap_threshold: minimum class score, maximum affinity and remaining
            fraction of the area of a panoptic entity.
        nested_threshold: a panoptic thing is dropped if it contains more than this fraction of a smaller one of its
            class with a higher score; 1 keeps all.
        member_threshold: normalised affinity above which a patch belongs to a query.
        merge: one of MERGE_RULES, for pixels where patches overlap; see :meth:`semantic` and :meth:`panoptic`.
        sem_seg_scores: return (C, H, W) scores instead of a label map.
        prompts_on: return the predictions themselves, for an evaluation of the prompts.
    """

    def __init__(
        self,
        *,
        thing_classes: Iterable[int],
        num_classes: int,
        semantic_on: bool = True,
        instance_on: bool = True,
        panoptic_on: bool = True,
        top_instances: int = 100,
        semantic_threshold: float = 0.02,
        score_threshold: float = 0.3,
        affinity_threshold: float = 0.3,
        overlap_threshold: float = 0.8,
        nested_threshold: float = 1.0,
        member_threshold: float = 0.5,
        merge: str = "mean",
        sem_seg_scores: bool = False,
        prompts_on: bool = False,
    ) -> None:
        if merge not in MERGE_RULES:
            raise ValueError(f"merge is {merge!r}; choose {' or '.join(map(repr, MERGE_RULES))}")
        self.set_classes(thing_classes, num_classes)
        self.semantic_on = semantic_on
        self.instance_on = instance_on
        self.panoptic_on = panoptic_on
        self.top_instances = top_instances
        self.semantic_threshold = semantic_threshold
        self.score_threshold = score_threshold
        self.affinity_threshold = affinity_threshold
        self.overlap_threshold = overlap_threshold
        self.nested_threshold = nested_threshold
        self.member_threshold = member_threshold
        self.merge = merge
        self.sem_seg_scores = sem_seg_scores
        self.prompts_on = prompts_on

    def set_classes(self, thing_classes: Iterable[int], num_classes: int) -> None:
        """Change the classes; arguments as in the constructor."""
        self.thing_classes = torch.tensor(sorted(thing_classes), dtype=torch.long)
        self.num_classes = num_classes

    def __call__(self, predictions: Predictions, patches: Patches) -> dict[str, object]:
        """Compute the outputs that are switched on.

        Returns:
            Any of ``sem_seg``, ``instances`` and ``panoptic_seg`` (see :meth:`samcp.SAMCP.forward`), ``predictions``.
        """
        predictions = Predictions(*(value.cpu() for value in vars(predictions).values()))
        result: dict[str, object] = {}
        if self.semantic_on:
            result["sem_seg"] = self.semantic(predictions, patches)
        if self.instance_on:
            result["instances"] = self.instances(predictions, patches)
        if self.panoptic_on:
            result["panoptic_seg"] = self.panoptic(predictions, patches)
        if self.prompts_on:
            result["predictions"] = predictions
        return result

    def semantic(self, predictions: Predictions, patches: Patches) -> Tensor:
        """Compute the class of each pixel.

        "paper" (4.1) and "nested": each class is the union of its queries' member patches, and a pixel gets the class
        of the highest score; by "nested" only if that exceeds ``semantic_threshold``. "mean": a pixel gets the class
        with the highest area-weighted mean of :meth:`patch_class_scores` over the patches that cover it, if that
        exceeds ``semantic_threshold``.

        Returns:
            (H, W) int64, ``UNLABELED`` where there is no patch or no class; or (C, H, W) float scores.
        """
        if self.merge != "mean":
            members = self.members(predictions.semantic_affinity), self.members(predictions.instance_affinity)
            predictions = replace(
                predictions, semantic_affinity=members[0].float(), instance_affinity=members[1].float()
            )
        values = self.patch_class_scores(predictions)
        if self.merge != "mean" and not self.sem_seg_scores:
            threshold = self.semantic_threshold if self.merge == "nested" else 0.0
            return torch.from_numpy(paint_best_class(values, patches, threshold))
        partition = patches.partition()
        scores = region_scores(values, partition, patches.areas, "mean" if self.merge == "mean" else "max")
        if self.sem_seg_scores:
            return torch.from_numpy(partition.paint(scores).transpose(2, 0, 1).copy())
        known = scores.max(axis=1) > self.semantic_threshold
        return torch.from_numpy(partition.paint(np.where(known, scores.argmax(axis=1), UNLABELED)))

    def instances(self, predictions: Predictions, patches: Patches) -> Instances:
        """Return the top-k (query, thing class) pairs as instances; each mask is the union of the query's patches."""
        scores = predictions.instance_scores[:, self.thing_classes]
        members = self.members(predictions.instance_affinity)
        scores = scores * members.any(-1, keepdim=True)
        top, index = scores.flatten().topk(min(self.top_instances, scores.numel()))
        index = index[top > 0]
        query = torch.div(index, max(len(self.thing_classes), 1), rounding_mode="floor")
        unique, inverse = query.unique(return_inverse=True)
        masks = _union(members[unique], patches)
        boxes = torch.from_numpy(masks.boxes.copy())

        result = Instances((patches.height, patches.width))
        result.pred_boxes = Boxes(boxes[inverse])
        result.scores = top[: len(index)]
        result.pred_classes = self.thing_classes[index % max(len(self.thing_classes), 1)]
        result.pred_masks = RLEMasks(masks.coco_rles, patches.height, patches.width)[inverse]
        return result

    def panoptic(self, predictions: Predictions, patches: Patches) -> tuple[Tensor, list[dict]]:
        """Compute a map of stuff regions and thing instances.

        "paper" (4.1): a pixel in several entities gets the one of the highest score. "mean": the one of the highest
        area-weighted mean of score times affinity over the patches that cover it. "nested": things as by "paper", in
        front of stuff as by "mean", if that exceeds ``semantic_threshold``, since the union of patches that are mostly
        of a stuff class would hide things. An entity that keeps less than ``overlap_threshold`` of its area is dropped,
        and so is before a thing that contains a better one of its class.

        Returns:
            (H, W) int32 map of segment ids, 0 where there is none, and one dict per segment.
        """
        classes, scores, affinity = self._panoptic_entities(predictions)
        members = self.members(affinity)
        entities = _union(members, patches)
        single = ~self._contains_better(classes, scores, entities)
        classes, scores, affinity, members = (values[single] for values in (classes, scores, affinity, members))
        entities, values = entities.select(single.numpy()), scores[:, None] * affinity
        if self.merge == "mean":
            canvas, areas = vote_for_entities(values, members, patches)
        elif self.merge == "paper":
            canvas, areas = paint_entities(scores, entities)
        else:
            is_thing = torch.isin(classes, self.thing_classes)
            canvas, areas = paint_things_first(
                scores, is_thing, entities, values, patches, threshold=self.semantic_threshold
            )
        kept = np.bincount(canvas.ravel(), minlength=len(areas) + 1)[1:]
        keep = (kept > 0) & (kept >= self.overlap_threshold * areas)
        renumber = np.concatenate([[0], np.cumsum(keep) * keep])
        segments = [
            {
                "id": int(renumber[i + 1]),
                "isthing": bool((self.thing_classes == classes[i]).any()),
                "category_id": int(classes[i]),
                "score": float(scores[i]),
                "area": int(kept[i]),
            }
            for i in np.flatnonzero(keep)
        ]
        return torch.from_numpy(renumber[canvas].astype(np.int32)), segments

    def _panoptic_entities(self, predictions: Predictions) -> tuple[Tensor, Tensor, Tensor]:
        """Return class, score and affinities of the entities above the thresholds; one class per query, its best."""
        is_stuff = ~torch.isin(predictions.semantic_classes, self.thing_classes)
        classes = [predictions.semantic_classes[is_stuff]]
        scores = [predictions.semantic_scores[is_stuff]]
        affinity = [predictions.semantic_affinity[is_stuff]]
        if len(self.thing_classes) and len(predictions.instance_scores):
            best, label = predictions.instance_scores[:, self.thing_classes].max(-1)
            classes.append(self.thing_classes[label])
            scores.append(best)
            affinity.append(predictions.instance_affinity)
        all_classes, all_scores, all_affinity = torch.cat(classes), torch.cat(scores), torch.cat(affinity)
        kept = all_scores.topk(min(self.top_instances, len(all_scores))).indices.sort().values
        kept = kept[(all_scores[kept] > self.score_threshold) & (_max(all_affinity[kept]) > self.affinity_threshold)]
        return all_classes[kept], all_scores[kept], all_affinity[kept]

    def _contains_better(self, classes: Tensor, scores: Tensor, entities: Patches) -> Tensor:
        """Return which entities (M,) are things that contain a smaller one of their class with a higher score."""
        areas = torch.from_numpy(entities.areas.copy())
        inside = torch.from_numpy(entities.iop(entities)) > self.nested_threshold
        better = (scores[:, None] > scores) & (areas[:, None] < areas) & (classes[:, None] == classes)
        return (inside & better).any(0) & torch.isin(classes, self.thing_classes)

    def patch_class_scores(self, predictions: Predictions) -> Tensor:
        """Compute Prompt I, (N, C): the maximum of score times affinity over the queries of a class, per patch.

        A class with a semantic query is scored by that query, other things by the instance queries. A patch's own query
        is not enough: an unmatched query is taught no class.
        """
        num_patches = predictions.semantic_affinity.shape[1]
        values = torch.zeros(num_patches, self.num_classes)
        semantic = predictions.semantic_scores[:, None] * predictions.semantic_affinity
        values[:, predictions.semantic_classes] = semantic.T.float()
        has_query = torch.isin(self.thing_classes, predictions.semantic_classes)
        if len(predictions.instance_scores):
            for c in self.thing_classes[~has_query].tolist():
                instance = predictions.instance_scores[:, c, None] * predictions.instance_affinity
                values[:, c] = instance.amax(0)
        return values

    def same_instance(self, predictions: Predictions, classes: Sequence[int]) -> Tensor:
        """Compute Prompt II, (N, N): the probability that two patches belong to one instance of some thing classes.

        P(i, j) = max over the ``top_instances`` best instance queries m of s_m Ā_mi Ā_mj, with s_m the highest score of
        `classes` and Ā the normalised affinity. So two patches are one instance if a confident query contains both. The
        affinities of a patch's own query are not enough: an unmatched query is taught its own patch alone.
        """
        num_patches = predictions.instance_affinity.shape[1]
        joint = torch.zeros(num_patches, num_patches)
        if not predictions.instance_affinity.numel():
            return joint
        scores = predictions.instance_scores[:, list(classes)].amax(-1)
        top = scores.topk(min(self.top_instances, len(scores)))
        everywhere = torch.ones(num_patches, dtype=torch.bool)
        claims = normalize_affinity(predictions.instance_affinity[top.indices].float(), everywhere)
        for score, claim in zip(top.values, claims, strict=True):
            torch.maximum(joint, score * torch.outer(claim, claim), out=joint)
        return joint

    def instance_around(
        self, predictions: Predictions, classes: Sequence[int], patches: Sequence[int]
    ) -> tuple[Tensor, float]:
        """Return the patches of the instance that most probably contains one of some patches, by Prompt II.

        It is the instance query with the highest P(i, i) = s_m Ā_mi² (see :meth:`same_instance`) of a member i.

        Args:
            classes: thing classes of which s_m is the highest score.
            patches: indices of at least one patch, such as those at a point.

        Returns:
            (n,) indices of the query's members, in ascending order, and P(i, i); the first patch and 0.0 if no query
            has one of the patches as a member.
        """
        affinity = predictions.instance_affinity.float()
        affinity = normalize_affinity(affinity, torch.ones(affinity.shape[1], dtype=torch.bool))
        members = affinity > self.member_threshold
        scores = predictions.instance_scores[:, list(classes)].amax(-1, keepdim=True)
        probability, query = (scores * affinity**2 * members)[:, list(patches)].amax(-1).max(0)
        if probability <= 0:
            return torch.tensor(patches[:1]), 0.0
        return members[query].nonzero().squeeze(1), float(probability)

    def members(self, affinity: Tensor) -> Tensor:
        """Return which patches belong to which query, (M, N) bool."""
        if affinity.shape[1] == 0:
            return torch.zeros_like(affinity, dtype=torch.bool)
        everywhere = torch.ones(affinity.shape[1], dtype=torch.bool, device=affinity.device)
        return normalize_affinity(affinity, everywhere) > self.member_threshold


def _union(members: Tensor, patches: Patches) -> Patches:
    """Merge the patches of each row of ``members`` (M, N) into one mask."""
    groups = [row.nonzero().squeeze(1).tolist() for row in members]
    return Patches.from_rles(patches.height, patches.width, patches.union(groups))


def _max(affinity: Tensor) -> Tensor:
    return affinity.amax(-1) if affinity.shape[-1] else affinity.new_zeros(len(affinity))
