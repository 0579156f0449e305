"""Losses of the small SAM: best of three masks, and the predicted IoU."""

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

FOCAL_WEIGHT = 5.0  # beside Dice

# The loss sees logits divided by this. Otherwise the focal loss leaves them so small that the stability score, with its
# offset of 1, is low for good masks.
SHARPNESS = 4.0


def mask_loss(logits: Tensor, targets: Tensor, exists: Tensor) -> Tensor:
    """Return the loss of each region's best mask, the mean over prompts and annotators, a scalar.

    The focal loss has no class weights: SAM's (alpha 0.25) put the boundary of a mask where three of four would agree,
    and masks of a model that is uncertain are then empty.

    Args:
        logits: (P, M, N) of M masks per prompt.
        targets: (P, A, N) in {0, 1}: the region of each of A annotators that contains the point.
        exists: (P, A) whether there is one.
    """
    logits = logits / SHARPNESS
    inside = sigmoid_focal_loss(logits, torch.ones_like(logits), alpha=-1, reduction="none")
    outside = sigmoid_focal_loss(logits, torch.zeros_like(logits), alpha=-1, reduction="none")
    focal = (inside @ targets.mT + outside @ (1 - targets).mT) / targets.shape[-1]
    masks, size = logits.sigmoid(), targets.sum(-1)[:, None]
    dice = 1 - (2 * masks @ targets.mT + 1) / (masks.sum(-1)[..., None] + size + 1)
    best = (FOCAL_WEIGHT * focal + dice).amin(1)
    return (best * exists).sum() / exists.sum()


def mask_iou(logits: Tensor, targets: Tensor, exists: Tensor) -> Tensor:
    """Return the IoU of each mask with each annotator's region, (P, M, A); 0 where there is none. As `mask_loss`."""
    masks = (logits > 0).float()
    overlap = masks @ targets.mT
    union = masks.sum(-1)[..., None] + targets.sum(-1)[:, None] - overlap
    return overlap / union.clamp(min=1) * exists[:, None]


def iou_loss(predicted: Tensor, iou: Tensor) -> Tensor:
    """Return the squared error of predicted IoUs (P, M) against the best annotator's of `mask_iou`, a scalar."""
    return F.mse_loss(predicted, iou.amax(-1))
