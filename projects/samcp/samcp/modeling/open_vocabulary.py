"""Fusion of learned scores with CLIP's scores of predicted masks (METHOD 8; paper 4.1, Tables 6 and 8)."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from proposal_cache import Patches
from samcp.modeling.inference import Predictions
from samcp.modeling.naming.base import Namer

FUSION_RULES = ("product", "sum")


@dataclass(frozen=True)
class ClipScores:
    """CLIP's scores of the masks of :class:`Predictions`, as probabilities over all classes.

    Attributes:
        semantic: (S,) score of the class of each semantic query.
        instance: (M, C) scores of each instance query.
    """

    semantic: Tensor
    instance: Tensor


class ScoreFusion:
    """Fusion of learned and CLIP's scores: S_ov = σ(S)^(1 - κ) · softmax(S_CLIP)^κ.

    Args:
        clip_weight: κ of the classes that the model was trained on; 0 uses its scores only, 1 CLIP's only.
        clip_weight_unseen: κ of all other classes.
        rule: "product", the geometric mean of Table 8, or "sum", the formula of 4.1, halved so that scores stay in
            [0, 1] and the same thresholds apply.
    """

    def __init__(self, *, clip_weight: float, clip_weight_unseen: float, rule: str) -> None:
        for name, value in (("clip_weight", clip_weight), ("clip_weight_unseen", clip_weight_unseen)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be between 0 and 1")
        if rule not in FUSION_RULES:
            raise ValueError(f"rule is {rule!r}; choose {' or '.join(map(repr, FUSION_RULES))}")
        self.clip_weight, self.clip_weight_unseen, self.rule = clip_weight, clip_weight_unseen, rule

    def __call__(self, predictions: Predictions, clip: ClipScores, seen: Tensor) -> Predictions:
        """Return the predictions with fused scores.

        Args:
            seen: (C,) bool, the classes that the model was trained on.
        """
        weight = torch.where(seen, self.clip_weight, self.clip_weight_unseen)
        return replace(
            predictions,
            semantic_scores=self._fuse(
                predictions.semantic_scores, clip.semantic, weight[predictions.semantic_classes]
            ),
            instance_scores=self._fuse(predictions.instance_scores, clip.instance, weight),
        )

    def _fuse(self, learned: Tensor, clip: Tensor, weight: Tensor) -> Tensor:
        # In float32, since powers such as 0.01 ** 0.4 lose half of their digits in half precision.
        a, b = learned.float() ** (1 - weight), clip.float() ** weight
        return a * b if self.rule == "product" else (a + b) / 2


def name_predictions(
    namer: Namer, dense: Tensor, prediction: Predictions, members: Tensor, patches: Patches
) -> tuple[Predictions, ClipScores]:
    """Compute a namer's scores of the predictions of an image.

    A model of one class finds instances. Stuff is what the namer finds in each patch alone, so the scores and
    affinities of the semantic queries are replaced.

    Args:
        dense: (channels, h, w), the namer's features of the image.
        members: (M, N) bool, the patches of each instance.
        patches: N patches.
    """
    alone = torch.eye(len(patches), dtype=torch.bool)
    weights = mask_weights(torch.cat([members.cpu(), alone]), patches, (dense.shape[1], dense.shape[2]))
    scores = namer.probabilities(dense, weights.to(dense.device))
    instance, patch_scores = scores.split([len(members), len(patches)])
    affinity = patch_scores[:, prediction.semantic_classes].T
    semantic = F.pad(affinity, (0, 1)).amax(1)  # padded, since there may be no patch
    stuff = {"semantic_scores": semantic, "semantic_affinity": affinity / semantic.clamp(min=1e-6)[:, None]}
    return replace(prediction, **stuff), ClipScores(semantic, instance)


def mask_weights(members: Tensor, patches: Patches, extent: tuple[float, float]) -> Tensor:
    """Compute the area of each union of patches inside each cell of a feature map.

    Args:
        members: (Q, N) bool, the patches of each union.
        patches: N patches, at the original image's size.
        extent: height and width of the image in cells; the last cells may be covered in part.

    Returns:
        (Q, h, w) in pixels of the original image; h and w are the extent, rounded up.
    """
    height, width = map(math.ceil, extent)
    if not len(patches) or not len(members):
        return torch.zeros(len(members), height, width)
    partition = patches.partition()
    rows, columns = (
        ((np.arange(pixels) + 0.5) * cells / pixels).astype(np.int64)
        for pixels, cells in ((patches.height, extent[0]), (patches.width, extent[1]))
    )
    cell = rows[:, None] * width + columns
    region = partition.paint(np.arange(len(partition.membership)))
    counts = sparse.csr_matrix(
        (np.ones(region.size, np.float32), (region.ravel(), cell.ravel())), (len(partition.membership), height * width)
    )
    inside = (members.cpu().numpy().astype(np.float32) @ partition.membership.T.astype(np.float32)) > 0
    return torch.from_numpy((counts.T @ inside.T.astype(np.float32)).T.reshape(-1, height, width).copy())
