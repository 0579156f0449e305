"""Contrastive denoising queries, after DINO (METHOD 3; Zhang et al., "DINO", 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised copies of the ground-truth instances, R of them an image (padded to the largest K).

    Attributes:
        labels: (B, R) class indices after noise; their text embedding is the query's content.
        boxes: (B, R, 4) boxes after noise, XYXY normalised.
        entity: (R,) which ground-truth instance a slot copies.
        positive: (R,) bool: lightly noised, to be restored; the others are heavily noised and are background.
        group: (R,) slots see only slots of their own group.
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
    classes: Sequence[Tensor],
    boxes: Sequence[Tensor],
    label_pool: Tensor,
    max_queries: int,
    label_noise: float,
    box_noise: float,
) -> DenoisingQueries:
    """Noise the ground-truth instances of a batch into as many groups as ``max_queries`` allows (at least one).

    Args:
        classes: (K_i,) class indices an image.
        boxes: (K_i, 4) XYXY normalised, an image.
        label_pool: classes that a noised label is drawn from.
        label_noise: half of this share of labels is replaced, as DINO does.
        box_noise: corners move by up to this share of half the box's size; twice that for negatives.

    Returns:
        No query at all (R = 0) where no image has an instance.
    """
    most = max(len(c) for c in classes)
    groups = max(1, max_queries // (2 * most)) if most else 0
    device = label_pool.device
    entity = torch.arange(most, device=device).repeat(groups * 2)
    positive = (torch.arange(groups * 2, device=device) % 2 == 0).repeat_interleave(most)
    group = torch.arange(groups, device=device).repeat_interleave(2 * most)

    padded_classes = torch.zeros(len(classes), most, dtype=torch.long, device=device)
    padded_boxes = torch.zeros(len(classes), most, 4, device=device)
    exists = torch.zeros(len(classes), most, dtype=torch.bool, device=device)
    for i, (c, b) in enumerate(zip(classes, boxes, strict=True)):
        padded_classes[i, : len(c)], padded_boxes[i, : len(c)], exists[i, : len(c)] = c, b, True

    return DenoisingQueries(
        labels=_noise_labels(padded_classes[:, entity], label_pool, label_noise),
        boxes=_noise_boxes(padded_boxes[:, entity], positive, box_noise),
        entity=entity,
        positive=positive,
        group=group,
        valid=exists[:, entity],
    )


def _noise_labels(labels: Tensor, pool: Tensor, noise: float) -> Tensor:
    if not labels.numel():
        return labels
    random = pool[torch.randint(len(pool), labels.shape, device=labels.device)]
    return torch.where(torch.rand(labels.shape, device=labels.device) < 0.5 * noise, random, labels)


def _noise_boxes(boxes: Tensor, positive: Tensor, noise: float) -> Tensor:
    """Move each corner by a random share in [0, 1) of half the box's size; in [1, 2) for negatives."""
    half_size = (boxes[..., 2:] - boxes[..., :2]) / 2
    sign = torch.randint(0, 2, boxes.shape, device=boxes.device) * 2 - 1
    share = torch.rand(boxes.shape, device=boxes.device) + (~positive)[:, None]
    moved = (boxes + sign * share * half_size.repeat(1, 1, 2) * noise).clamp(0, 1)
    # Negatives may swap their corners.
    return torch.cat([torch.minimum(moved[..., :2], moved[..., 2:]), torch.maximum(moved[..., :2], moved[..., 2:])], -1)
