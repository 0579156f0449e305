"""Losses of the small SAM: masks in ascending size, and the predicted IoU."""

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

FOCAL_WEIGHT = 1.0  # beside Dice; with 5, all masks were still empty after 600 iterations

# The loss sees logits divided by this. Otherwise the focal loss leaves them so small that the stability score, with its
# offset of 1, is low for good masks.
SHARPNESS = 4.0


def mask_loss(logits: Tensor, targets: Tensor, exists: Tensor) -> Tensor:
    """Return the loss of the masks against regions of ascending size, the mean over prompts and masks, a scalar.

    The first mask learns the smallest region that an annotator drew around the point, the last one the largest. SAM's
    loss, the best of the three masks, leaves one mask to all parts and objects, and the others to the background:
    a model as small as this one does not find the division itself.

    The focal loss has no class weights: SAM's (alpha 0.25) put the boundary of a mask where three of four would agree,
    and masks of a model that is uncertain are then empty.

    Args:
        logits: (P, M, N) of M masks per prompt.
        targets: (P, A, N) in {0, 1}: the region of each of A annotators that contains the point.
        exists: (P, A) whether there is one; at least one per prompt.
    """
    logits = logits / SHARPNESS
    regions = targets_by_size(targets, exists, logits.shape[1])
    focal = sigmoid_focal_loss(logits, regions, alpha=-1, reduction="none").mean(-1)
    masks = logits.sigmoid()
    dice = 1 - (2 * (masks * regions).sum(-1) + 1) / (masks.sum(-1) + regions.sum(-1) + 1)
    return (FOCAL_WEIGHT * focal + dice).mean()


def targets_by_size(targets: Tensor, exists: Tensor, count: int) -> Tensor:
    """Return `count` regions per prompt, (P, count, N): quantiles of those that exist, in ascending size."""
    sizes = targets.sum(-1).masked_fill(~exists, float("inf"))
    order = sizes.argsort(1)
    quantiles = torch.linspace(0, 1, count)
    rank = (quantiles * (exists.sum(1, keepdim=True) - 1)).round().long()
    chosen = order.gather(1, rank)
    return targets.gather(1, chosen[..., None].expand(-1, -1, targets.shape[-1]))


def mask_iou(logits: Tensor, targets: Tensor, exists: Tensor) -> Tensor:
    """Return the IoU of each mask with each annotator's region, (P, M, A); 0 where there is none. As `mask_loss`."""
    masks = (logits > 0).float()
    overlap = masks @ targets.mT
    union = masks.sum(-1)[..., None] + targets.sum(-1)[:, None] - overlap
    return overlap / union.clamp(min=1) * exists[:, None]


def iou_loss(predicted: Tensor, iou: Tensor) -> Tensor:
    """Return the squared error of predicted IoUs (P, M) against the best annotator's of `mask_iou`, a scalar."""
    return F.mse_loss(predicted, iou.amax(-1))
