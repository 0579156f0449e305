"""Per-pixel results where patches overlap, on RLEs and atomic regions instead of dense masks."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proposal_cache import Patches, rle
from proposal_cache.partition import Partition

UNLABELED = -1  # in a semantic label map

_MAJORITY = 0.5
_REGIONS_AT_ONCE = 4096  # limits the memory of images with many regions


def region_scores(
    values: Tensor, partition: Partition, areas: NDArray[np.integer], reduce: str = "mean"
) -> NDArray[np.float32]:
    """Aggregate patch scores over each atomic region.

    Args:
        values: (N, K) scores of patches.
        areas: (N,) areas of patches in pixels.
        reduce: "mean", weighted by the reciprocal of the areas, since a patch that covers most of the image is weak
            evidence for any single pixel; or "max".

    Returns:
        (A, K) scores of regions, 0 if no patch covers the region.
    """
    patch_scores, weights = values.numpy(), 1 / np.maximum(areas, 1).astype(np.float32)
    scores = np.zeros((len(partition.membership), patch_scores.shape[1]), np.float32)
    for first in range(0, len(scores), _REGIONS_AT_ONCE):
        block = slice(first, first + _REGIONS_AT_ONCE)
        membership = partition.membership[block]
        if reduce == "max":
            for k, column in enumerate(patch_scores.T):
                scores[block, k] = (membership * column).max(axis=1, initial=0)
        else:
            shares = membership * weights
            total = shares.sum(axis=1, keepdims=True)
            scores[block] = shares @ patch_scores / np.where(total > 0, total, 1)
    return scores


def vote_for_entities(
    values: Tensor, members: Tensor, patches: Patches
) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """Assign each pixel to one entity by area-weighted voting of the patches that cover it.

    The area of an entity is the pixels where its members have at least half of the weight. The union of the members
    would be too large an area if one of them is much larger than the entity.

    Args:
        values: (M, N) scores of M entities for the patches.
        members: (M, N) bool, the entities' patches.

    Returns:
        (H, W), 1 + the entity, 0 where no member lies; and (M,) areas in pixels.
    """
    if not len(values):
        return np.zeros((patches.height, patches.width), dtype=np.int64), np.zeros(0, dtype=np.int64)
    partition = patches.partition()
    both = region_scores(torch.cat([values * members, members.float()]).T, partition, patches.areas)
    scores, shares = np.split(both, 2, axis=1)
    canvas = partition.paint(np.where(scores.max(axis=1) > 0, scores.argmax(axis=1) + 1, 0))
    return canvas, partition.areas @ (shares >= _MAJORITY)


def paint_entities(scores: Tensor, entities: Patches) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """Assign each pixel to the entity of the highest score, of equal scores to the smaller entity.

    Args:
        scores: (M,).
        entities: M masks.

    Returns:
        (H, W), 1 + the entity, 0 where there is none; and (M,) areas in pixels.
    """
    order = np.lexsort((-entities.areas, scores.numpy()))
    ids = np.arange(1, len(entities) + 1)
    canvas = paint(entities.rles, order, ids, entities.height, entities.width, background=0)
    return canvas, entities.areas


def paint_things_first(
    scores: Tensor, is_thing: Tensor, entities: Patches, values: Tensor, patches: Patches, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """Assign each pixel to a thing by :func:`paint_entities` or, where there is none, to stuff.

    A pixel gets the stuff with the highest area-weighted mean of the values of the patches that cover it, if that
    exceeds the threshold. The area of stuff is what it gets: it is not too small because things are in front of it.

    Args:
        scores: (M,) of M entities.
        is_thing: (M,) bool.
        entities: the M unions of their patches.
        values: (M, N) scores of the entities for the patches.

    Returns:
        (H, W), 1 + the entity, 0 where there is none; and (M,) areas in pixels.
    """
    things, stuff = is_thing.nonzero()[:, 0].numpy(), (~is_thing).nonzero()[:, 0].numpy()
    painted, thing_areas = paint_entities(scores[things], entities.select(things))
    canvas = np.append(0, things + 1)[painted]
    if len(stuff):
        partition = patches.partition()
        means = region_scores(values[stuff].T, partition, patches.areas)
        behind = partition.paint(np.where(means.max(axis=1) > threshold, stuff[means.argmax(axis=1)] + 1, 0))
        canvas = np.where(canvas > 0, canvas, behind)
    areas = np.bincount(canvas.ravel(), minlength=len(scores) + 1)[1:]
    areas[things] = thing_areas
    return canvas, areas


def paint_best_class(values: Tensor, patches: Patches, threshold: float = 0.0) -> NDArray[np.int64]:
    """Assign each pixel the best class of the patch with the highest score, of equal scores of the smaller patch.

    Args:
        values: (N, C) scores of patches.
        threshold: minimum score of a pixel's class.

    Returns:
        (H, W) class indices, UNLABELED where no patch has a score above the threshold.
    """
    best, label = (column.numpy() for column in values.max(-1))
    order = np.lexsort((-patches.areas, best))
    order = order[best[order] > threshold]
    return paint(patches.rles, order, label, patches.height, patches.width, background=UNLABELED)


def paint(
    rles: tuple[bytes, ...],
    order: NDArray[np.integer],
    values: NDArray[np.integer],
    height: int,
    width: int,
    background: int,
) -> NDArray[np.int64]:
    """Write ``values[i]`` where mask ``i`` lies, for i in ``order``, later masks over earlier ones: (height, width)."""
    runs = rle.decode_runs(rles, height, width)
    canvas = np.full(height * width, background, dtype=np.int64)
    for i in order:
        ends = runs.ends[runs.first[i] : runs.first[i + 1]].tolist()
        value = values[i]
        for start, stop in zip(ends[::2], ends[1::2], strict=False):
            canvas[start:stop] = value
    return np.ascontiguousarray(canvas.reshape(width, height).T)
