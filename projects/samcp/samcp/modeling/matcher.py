"""Hungarian matching of instance queries and ground-truth instances (METHOD 6; paper 3.2.3)."""

from collections.abc import Sequence

import numpy as np
import torch
from fvcore.nn import sigmoid_focal_loss
from scipy.optimize import linear_sum_assignment
from torch import Tensor

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
        class_logits: Sequence[Tensor],
        affinity_logits: Sequence[Tensor],
        boxes: Sequence[Tensor],
        gt_classes: Tensor,
        gt_affinity: Tensor,
        gt_weights: Tensor,
        gt_boxes: Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Match the queries of L layers, one per patch, and the K instances of each of B images.

        The costs of all layers and images are moved to the CPU at once.

        Args:
            class_logits, affinity_logits, boxes: one per layer; see `cost`.
            sizes: numbers of instances and of patches of each image; the rest is padding.

        Returns:
            (L, B, N) index of the instance of each query, -1 if it has none.
        """
        costs = []
        for logits, affinity, merged in zip(class_logits, affinity_logits, boxes, strict=True):
            with without_autocast(logits):
                cost = self.cost(
                    class_logits=logits.float(),
                    affinity_logits=affinity.float(),
                    boxes=merged.float(),
                    gt_classes=gt_classes,
                    gt_affinity=gt_affinity,
                    gt_weights=gt_weights,
                    gt_boxes=gt_boxes,
                )
            costs.append(cost)
        # The trainer raises an error for a non-finite loss, so NaN is not an error here.
        moved = torch.stack(costs).nan_to_num(nan=_NAN_COST).cpu().numpy()
        matches = np.full(moved.shape[:3], -1)
        for layer, image in np.ndindex(*moved.shape[:2]):
            num_instances, num_patches = sizes[image]
            query, instance = linear_sum_assignment(moved[layer, image, :num_patches, :num_instances])
            matches[layer, image, query] = instance
        return torch.from_numpy(matches).to(gt_classes.device)

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
        """Compute the (B, M, K) costs of M queries and K instances.

        The affinity costs equal the losses of the pair: sums over patches divided by max(|G_k|, 1).

        Args:
            class_logits: (B, M, C).
            affinity_logits: (B, M, N).
            boxes: (B, M, 4) merged boxes, XYXY normalised.
            gt_classes: (B, K).
            gt_affinity, gt_weights: (B, K, N) G, and weights that are 0 if G is ignored, and for padding.
            gt_boxes: (B, K, 4) XYXY normalised.
        """
        total = class_logits.new_zeros(*class_logits.shape[:2], gt_classes.shape[1])
        if self.cls:
            columns = gt_classes[:, None].expand(-1, class_logits.shape[1], -1)
            total += self.cls * focal_class_cost(class_logits.gather(2, columns))
        if self.mask_focal or self.dice:
            focal, dice = pairwise_affinity_costs(affinity_logits, gt_affinity, gt_weights)
            total += self.mask_focal * focal + self.dice * dice
        if self.l1:
            total += self.l1 * torch.cdist(boxes, gt_boxes, p=1)  # XYXY, as in the released code
        if self.giou:
            total -= self.giou * pairwise_generalized_iou(boxes, gt_boxes)
        return total


def focal_class_cost(logits: Tensor) -> Tensor:
    """Return the change of the focal loss (..., C) if a class becomes the target, as in Deformable DETR."""
    positive, negative = (
        sigmoid_focal_loss(logits, torch.full_like(logits, target), alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA)
        for target in (1.0, 0.0)
    )
    return positive - negative


def pairwise_generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalized IoU of all pairs of XYXY boxes per image, (B, M, 4) and (B, K, 4) -> (B, M, K).

    torchvision's function accepts batches in recent versions only.
    """
    a, b = first[:, :, None], second[:, None]
    overlap = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - overlap
    return overlap / union - (hull - union) / hull


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(-1)
