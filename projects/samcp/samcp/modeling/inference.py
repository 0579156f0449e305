"""From affinities and scores to segmentations, by RLEs (METHOD 8; paper 4.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch import Tensor

from proposal_cache import Patches, rle
from proposal_cache.cells import Cells
from samcp.modeling.affinity_decoder import normalize_affinity
from samcp.structures import RLEMasks

UNLABELED = -1  # in a semantic label map, where no patch lies
MERGE_RULES = ("mean", "paper")

_MAJORITY = 0.5
_CELLS_AT_ONCE = 4096  # so that the memory that many patches with ragged borders need stays small


@dataclass(frozen=True)
class Predictions:
    """What the queries of one image say. Tensors on any device; N is the image's own number of patches.

    Attributes:
        semantic_classes: (S,) the class of every semantic query.
        semantic_scores: (S,) probability that the class is in the image.
        semantic_affinity: (S, N) in [0, 1].
        instance_scores: (M, C) probability of every class; only things count.
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
        semantic_threshold: "mean" rule of :meth:`semantic`: least evidence of a pixel's class.
        score_threshold, affinity_threshold, overlap_threshold: least class score, least maximal affinity and least
            kept share of the area of a panoptic entity.
        member_threshold: normalised affinity above which a patch belongs to a query.
        merge: "mean" or "paper": how pixels are resolved where patches of several classes or entities overlap; see
            :meth:`semantic` and :meth:`panoptic`.
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
        self.member_threshold = member_threshold
        self.merge = merge
        self.sem_seg_scores = sem_seg_scores
        self.prompts_on = prompts_on

    def set_classes(self, thing_classes: Iterable[int], num_classes: int) -> None:
        """Number the classes anew; as the constructor's arguments."""
        self.thing_classes = torch.tensor(sorted(thing_classes), dtype=torch.long)
        self.num_classes = num_classes

    def __call__(self, predictions: Predictions, patches: Patches) -> dict[str, object]:
        """Compute the outputs that are switched on.

        Returns:
            Any of ``sem_seg``, ``instances``, ``panoptic_seg`` and ``predictions``; see :meth:`samcp.SAMCP.forward`.
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
        """The class of every pixel.

        "paper" (4.1): each class is the union of its queries' member patches, and a pixel gets the class of the highest
        score. "mean": a patch has, for every class, the highest score times affinity of the class's queries, and a
        pixel gets the class whose mean over the patches that cover it is highest, see :func:`cell_scores`, unless this
        does not exceed ``semantic_threshold``.

        Returns:
            (H, W) int64, ``UNLABELED`` where no patch or no class is; or (C, H, W) float scores.
        """
        if self.merge == "paper":
            members = self.members(predictions.semantic_affinity), self.members(predictions.instance_affinity)
            predictions = replace(
                predictions, semantic_affinity=members[0].float(), instance_affinity=members[1].float()
            )
        values = self.patch_class_scores(predictions)
        if self.merge == "paper" and not self.sem_seg_scores:
            return torch.from_numpy(_paint_best(values, patches))
        cells = patches.cells()
        scores = cell_scores(values, cells, patches.areas, "max" if self.merge == "paper" else "mean")
        if self.sem_seg_scores:
            return torch.from_numpy(cells.paint(scores).transpose(2, 0, 1).copy())
        known = scores.max(axis=1) > self.semantic_threshold
        return torch.from_numpy(cells.paint(np.where(known, scores.argmax(axis=1), UNLABELED)))

    def instances(self, predictions: Predictions, patches: Patches) -> Instances:
        """The best (query, thing class) pairs; a mask is the union of the query's patches."""
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
        """Semantic regions of stuff and instances of things, each a union of patches.

        "paper" (4.1): a pixel in several goes to the entity of the highest score. "mean": to that of the highest mean
        score times affinity over the patches that cover it; see :func:`cell_scores`. An entity that keeps too little of
        its area is dropped.

        Returns:
            (H, W) int32 map of segment ids, 0 where there is none, and one dict a segment.
        """
        classes, scores, affinity = self._panoptic_entities(predictions)
        members = self.members(affinity)
        if self.merge == "paper":
            canvas, areas = _paint_entities(scores, _union(members, patches))
        else:
            canvas, areas = _share_out(scores[:, None] * affinity, members, patches)
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
        """Class, score and affinities of the entities above the thresholds; each query has its best class."""
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

    def patch_class_scores(self, predictions: Predictions) -> Tensor:
        """Prompt I, (N, C): the highest score times affinity that any query of a class has for a patch.

        A class with a semantic query is scored by it alone, a thing without one by the instance queries. A patch's own
        query does not suffice: unless it is matched, it is taught no class at all.
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
        """Prompt II, (N, N), symmetric: whether two patches belong to one instance of any of some thing classes.

        P(i, j) = max over instance queries m of s_m (Ā_mi Ā_mj)^½, where s_m is the highest score of `classes` and Ā
        the normalised affinity: two patches are one instance if a query that is sure of the class claims both. The row
        of a patch's own query would not do: an unmatched one is taught its own patch alone.
        """
        num_patches = predictions.instance_affinity.shape[1]
        joint = torch.zeros(num_patches, num_patches)
        if not predictions.instance_affinity.numel():
            return joint
        scores = predictions.instance_scores[:, list(classes)].amax(-1)
        top = scores.topk(min(self.top_instances, len(scores)))
        everywhere = torch.ones(num_patches, dtype=torch.bool)
        claims = normalize_affinity(predictions.instance_affinity[top.indices].float(), everywhere).sqrt()
        for score, claim in zip(top.values, claims, strict=True):
            torch.maximum(joint, score * torch.outer(claim, claim), out=joint)
        return joint

    def members(self, affinity: Tensor) -> Tensor:
        """(M, N) bool: which patches belong to which query."""
        if affinity.shape[1] == 0:
            return torch.zeros_like(affinity, dtype=torch.bool)
        everywhere = torch.ones(affinity.shape[1], dtype=torch.bool, device=affinity.device)
        return normalize_affinity(affinity, everywhere) > self.member_threshold


def paint(
    rles: tuple[bytes, ...],
    order: NDArray[np.integer],
    values: NDArray[np.integer],
    height: int,
    width: int,
    background: int,
) -> NDArray[np.int64]:
    """Write ``values[i]`` where mask ``i`` lies, for i in ``order``, later ones over earlier ones: (height, width)."""
    runs = rle.decode_runs(rles, height, width)
    canvas = np.full(height * width, background, dtype=np.int64)
    for i in order:
        ends = runs.ends[runs.first[i] : runs.first[i + 1]].tolist()
        value = values[i]
        for start, stop in zip(ends[::2], ends[1::2], strict=False):
            canvas[start:stop] = value
    return np.ascontiguousarray(canvas.reshape(width, height).T)


def _union(members: Tensor, patches: Patches) -> Patches:
    """One mask a row of ``members`` (M, N): the union of its patches."""
    groups = [row.nonzero().squeeze(1).tolist() for row in members]
    return Patches.from_rles(patches.height, patches.width, patches.union(groups))


def _max(affinity: Tensor) -> Tensor:
    return affinity.amax(-1) if affinity.shape[-1] else affinity.new_zeros(len(affinity))


def _share_out(values: Tensor, members: Tensor, patches: Patches) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """Whose every pixel is, by what the patches that cover it say together.

    An entity's own area, of which it must keep enough, is where at least half of what is said is said by its members,
    as a mask elsewhere is where its probability is a half: by the union, one patch that is too large condemns it.

    Args:
        values: (M, N) of M entities.
        members: (M, N) bool.

    Returns:
        (H, W), 1 + the entity, 0 where the patches say nothing; and (M,) the areas.
    """
    if not len(values):
        return np.zeros((patches.height, patches.width), dtype=np.int64), np.zeros(0, dtype=np.int64)
    cells = patches.cells()
    both = cell_scores(torch.cat([values * members, members.float()]).T, cells, patches.areas)
    scores, shares = np.split(both, 2, axis=1)
    canvas = cells.paint(np.where(scores.max(axis=1) > 0, scores.argmax(axis=1) + 1, 0))
    return canvas, cells.areas @ (shares >= _MAJORITY)


def _paint_entities(scores: Tensor, entities: Patches) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """The same by the highest score (M,) alone; of equal scores the smaller entity stays visible."""
    order = np.lexsort((-entities.areas, scores.numpy()))
    ids = np.arange(1, len(entities) + 1)
    canvas = paint(entities.rles, order, ids, entities.height, entities.width, background=0)
    return canvas, entities.areas


def _paint_best(values: Tensor, patches: Patches) -> NDArray[np.int64]:
    """(H, W): the best class of the patch that is surest of one, of equally sure ones the smallest."""
    best, label = (column.numpy() for column in values.max(-1))
    order = np.lexsort((-patches.areas, best))
    order = order[best[order] > 0]
    return paint(patches.rles, order, label, patches.height, patches.width, background=UNLABELED)


def cell_scores(values: Tensor, cells: Cells, areas: NDArray[np.integer], merge: str = "mean") -> NDArray[np.float32]:
    """What the patches that cover a cell say of it together.

    "mean" is the mean of their values weighted by the reciprocal of each patch's area: one that covers much of the
    image says little of any single pixel. "max" is the highest value.

    Args:
        values: (N, K) of patches.
        areas: (N,) of patches, in pixels.

    Returns:
        (A, K), 0 where no patch lies.
    """
    said, weights = values.numpy(), 1 / np.maximum(areas, 1).astype(np.float32)
    scores = np.zeros((len(cells.covers), said.shape[1]), np.float32)
    for first in range(0, len(scores), _CELLS_AT_ONCE):
        block = slice(first, first + _CELLS_AT_ONCE)
        covers = cells.covers[block]
        if merge == "max":
            for k, column in enumerate(said.T):
                scores[block, k] = (covers * column).max(axis=1, initial=0)
        else:
            shares = covers * weights
            total = shares.sum(axis=1, keepdims=True)
            scores[block] = shares @ said / np.where(total > 0, total, 1)
    return scores
