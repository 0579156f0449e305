"""Hungarian matching of instance queries and ground-truth instances (METHOD 6; paper 3.2.3)."""

import torch
from fvcore.nn import sigmoid_focal_loss
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

from samcp.modeling.layers import without_autocast
from samcp.modeling.losses import FOCAL_ALPHA, FOCAL_GAMMA, pairwise_affinity_costs

_NAN_COST = 1e6  # replaces NaN, which linear_sum_assignment rejects


class HungarianMatcher:
    """Matcher of queries and instances, one to one, with minimum total cost.

    Args:
        cls, mask_focal, dice, l1, giou: weights of the costs; 0 disables a cost (Table 3).
    """

    def __init__(self, *, cls: float, mask_focal: float, dice: float, l1: float, giou: float) -> None:
        self.cls = cls
        self.mask_focal = mask_focal
        self.dice = dice
        self.l1 = l1
        self.giou = giou

    @torch.no_grad()
    def __call__(
        self,
        *,
        class_logits: Tensor,
        affinity_logits: Tensor,
        boxes: Tensor,
        gt_classes: Tensor,
        gt_affinity: Tensor,
        gt_weights: Tensor,
        gt_boxes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Match the M queries and K instances of one image.

        Args:
            class_logits: (M, C).
            affinity_logits: (M, N), for valid patches.
            boxes: (M, 4) merged boxes, XYXY normalised.
            gt_classes: (K,).
            gt_affinity, gt_weights: (K, N) G, and weights that are 0 if G is ignored.
            gt_boxes: (K, 4) XYXY normalised.

        Returns:
            Indices of matched queries and of their instances, min(M, K) each.
        """
        with without_autocast(class_logits):
            cost = self.cost(
                class_logits=class_logits.float(),
                affinity_logits=affinity_logits.float(),
                boxes=boxes.float(),
                gt_classes=gt_classes,
                gt_affinity=gt_affinity.float(),
                gt_weights=gt_weights.float(),
                gt_boxes=gt_boxes.float(),
            )
        # The trainer raises an error for a non-finite loss, so NaN is not an error here.
        query, entity = linear_sum_assignment(cost.nan_to_num(nan=_NAN_COST).cpu().numpy())
        device = class_logits.device
        return torch.as_tensor(query, device=device), torch.as_tensor(entity, device=device)

    def cost(
        self,
        *,
        class_logits: Tensor,
        affinity_logits: Tensor,
        boxes: Tensor,
        gt_classes: Tensor,
        gt_affinity: Tensor,
        gt_weights: Tensor,
        gt_boxes: Tensor,
    ) -> Tensor:
        """Compute the (M, K) cost matrix.

        The affinity costs equal the losses of the pair: sums over patches divided by max(|G_k|, 1).
        """
        total = class_logits.new_zeros(len(class_logits), len(gt_classes))
        if self.cls:
            total += self.cls * focal_class_cost(class_logits)[:, gt_classes]
        if self.mask_focal or self.dice:
            focal, dice = pairwise_affinity_costs(affinity_logits, gt_affinity, gt_weights)
            total += self.mask_focal * focal + self.dice * dice
        if self.l1:
            total += self.l1 * torch.cdist(boxes, gt_boxes, p=1)  # XYXY, as in the released code
        if self.giou:
            total -= self.giou * generalized_box_iou(boxes, gt_boxes)
        return total


def focal_class_cost(logits: Tensor) -> Tensor:
    """Return the change of the focal loss if a class becomes the target, (M, C) -> (M, C), as in Deformable DETR."""
    positive, negative = (
        sigmoid_focal_loss(logits, torch.full_like(logits, target), alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA)
        for target in (1.0, 0.0)
    )
    return positive - negative
