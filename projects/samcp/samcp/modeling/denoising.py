"""Contrastive denoising queries (METHOD 3; Zhang et al., "DINO", 2023)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenoisingQueries:
    """Copies of the ground-truth instances with noise, R per image (padded to the largest K).

    Attributes:
        labels: (B, R) class indices after noise; their text embeddings are the content of the queries.
        boxes: (B, R, 4) boxes after noise, XYXY normalised.
        entity: (R,) index of the ground-truth instance that a slot copies.
        positive: (R,) bool, slots with little noise and the instance as target; the others have more noise and the
            target background.
        group: (R,) group of a slot; slots of different groups do not attend to each other.
        valid: (B, R) bool, False for padding.
    """

    labels: Tensor
    boxes: Tensor
    entity: Tensor
    positive: Tensor
    group: Tensor
    valid: Tensor


def make_denoising_queries(
    *,
    classes: Tensor,
    boxes: Tensor,
    valid: Tensor,
    label_pool: Tensor,
    max_queries: int,
    label_noise: float,
    box_noise: float,
) -> DenoisingQueries:
    """Copy the ground-truth instances with noise into as many groups as ``max_queries`` allows (at least one).

    Args:
        classes: (B, K) class indices of the instances of each image.
        boxes: (B, K, 4) XYXY normalised.
        valid: (B, K) bool, False for padding.
        label_pool: classes that random labels are drawn from.
        label_noise: twice the probability that a label is replaced, as in DINO.
        box_noise: corners move by up to this fraction of half the box size, negatives by up to twice as much.

    Returns:
        Denoising queries; none (R = 0) if K is 0.
    """
    max_instances = classes.shape[1]
    groups = max(1, max_queries // (2 * max_instances)) if max_instances else 0
    device = label_pool.device
    entity = torch.arange(max_instances, device=device).repeat(groups * 2)
    positive = (torch.arange(groups * 2, device=device) % 2 == 0).repeat_interleave(max_instances)
    group = torch.arange(groups, device=device).repeat_interleave(2 * max_instances)

    return DenoisingQueries(
        labels=_noise_labels(classes[:, entity], label_pool, label_noise),
        boxes=_noise_boxes(boxes[:, entity], positive, box_noise),
        entity=entity,
        positive=positive,
        group=group,
        valid=valid[:, entity],
    )


def _noise_labels(labels: Tensor, pool: Tensor, noise: float) -> Tensor:
    if not labels.numel():
        return labels
    random = pool[torch.randint(len(pool), labels.shape, device=labels.device)]
    return torch.where(torch.rand(labels.shape, device=labels.device) < 0.5 * noise, random, labels)


def _noise_boxes(boxes: Tensor, positive: Tensor, noise: float) -> Tensor:
    """Move each corner by a random fraction in [0, 1), for negatives in [1, 2), of half the box size times noise."""
    half_size = (boxes[..., 2:] - boxes[..., :2]) / 2
    sign = torch.randint(0, 2, boxes.shape, device=boxes.device) * 2 - 1
    fraction = torch.rand(boxes.shape, device=boxes.device) + (~positive)[:, None]
    moved = (boxes + sign * fraction * half_size.repeat(1, 1, 2) * noise).clamp(0, 1)
    # The corners of a negative may have swapped.
    return torch.cat([torch.minimum(moved[..., :2], moved[..., 2:]), torch.maximum(moved[..., :2], moved[..., 2:])], -1)
