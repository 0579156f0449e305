"""Losses of the small SAM: best of three masks, and the predicted IoU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from samcp.modeling.losses import pairwise_affinity_costs

FOCAL_WEIGHT = 20.0  # of the focal loss per pixel, beside Dice, as in SAM

# The loss sees logits divided by this. Otherwise the focal loss leaves them so small that the stability score, with its
# offset of 1, is low for good masks.
SHARPNESS = 4.0


def mask_loss(logits: Tensor, targets: Tensor, exists: Tensor) -> Tensor:
    """Return the loss of each region's best mask, the mean over prompts and annotators, a scalar.

    Args:
        logits: (P, M, N) of M masks per prompt.
        targets: (P, A, N) in {0, 1}: the region of each of A annotators that contains the point.
        exists: (P, A) whether there is one.
    """
    focal, dice = pairwise_affinity_costs(logits / SHARPNESS, targets, torch.ones_like(targets))
    per_pixel = targets.sum(-1)[:, None] / targets.shape[-1]  # instead of per pixel of the region
    best = (FOCAL_WEIGHT * per_pixel * focal + dice).amin(1)
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
