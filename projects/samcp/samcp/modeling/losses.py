"""Focal and Dice losses (METHOD 7; paper Eq. 1, 2)."""

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


def focal_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted elementwise focal loss, same shape as ``logits``."""
    loss = sigmoid_focal_loss(logits, targets, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="none")
    return loss * weights


def affinity_focal_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the focal loss of affinity rows, divided by max(|B_m|, 1): (..., M, N) -> (..., M)."""
    return focal_loss(logits, targets, weights).sum(-1) / targets.sum(-1).clamp(min=1)


def dice_loss(logits: Tensor, targets: Tensor, weights: Tensor, eps: float = 1.0) -> Tensor:
    """Return the Dice loss of affinity rows over the entries of weight 1: (..., M, N) -> (..., M).

    ``1 - (2 sum(A B) + eps) / (sum(A) + sum(B) + eps)``; 0 for rows of weight 0.
    """
    affinity, targets = logits.sigmoid() * weights, targets * weights
    overlap = 2 * (affinity * targets).sum(-1)
    return 1 - (overlap + eps) / (affinity.sum(-1) + targets.sum(-1) + eps)


def pairwise_affinity_costs(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute focal and Dice losses of all (query, entity) pairs as matrix products.

    Args:
        logits: (..., M, N) affinity logits.
        targets: (..., K, N) G in {0, 1}.
        weights: (..., K, N) in {0, 1}, 0 if the pair of entity and patch is ignored.

    Returns:
        Two (..., M, K) tensors, equal to :func:`affinity_focal_loss` and :func:`dice_loss` of each pair.
    """
    ones = torch.ones_like(logits)
    positive = focal_loss(logits, ones, ones)
    negative = focal_loss(logits, torch.zeros_like(logits), ones)
    targets = targets * weights
    size = targets.sum(-1).unsqueeze(-2)
    focal = (positive @ targets.mT + negative @ (weights - targets).mT) / size.clamp(min=1)
    affinity = logits.sigmoid()
    dice = 1 - (2 * affinity @ targets.mT + 1) / (affinity @ weights.mT + size + 1)
    return focal, dice
