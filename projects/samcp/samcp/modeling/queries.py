"""Semantic and instance queries, and who may see whom (METHOD 3; paper 3.2.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .denoising import DenoisingQueries
from .patch_batch import PatchBatch


@dataclass(frozen=True)
class QuerySet:
    """The queries of B images, in the order semantic, instance, denoising.

    Attributes:
        content: (B, M, D).
        boxes: (B, M, 4) reference boxes, XYXY normalised.
        visible: (B, M, M) bool, True where the row's query may see the column's.
        num_semantic, num_instance, num_denoising: their sum is M. num_instance is N or 0.
    """

    content: Tensor
    boxes: Tensor
    visible: Tensor
    num_semantic: int
    num_instance: int
    num_denoising: int

    @property
    def num_matching(self) -> int:
        """How many queries are not for denoising."""
        return self.num_semantic + self.num_instance


class QueryBuilder(nn.Module):
    """Make the decoder's queries from class embeddings and patches.

    Args:
        dim: width D of the queries.
        text_dim: width of the class embeddings.
        instance_queries: whether every patch is an instance query ("patch-as-query").
    """

    def __init__(self, *, dim: int, text_dim: int, instance_queries: bool = True) -> None:
        super().__init__()
        self.instance_queries = instance_queries
        self.text_content = nn.Sequential(nn.Linear(text_dim, dim), nn.LayerNorm(dim))
        self.text_box = nn.Linear(text_dim, 4)

    def forward(
        self,
        *,
        embeddings: Tensor,
        semantic_classes: Tensor,
        features: Tensor,
        patches: PatchBatch,
        denoising: DenoisingQueries | None = None,
    ) -> QuerySet:
        """Build the queries of a batch.

        Args:
            embeddings: (C, text_dim) class embeddings.
            semantic_classes: indices of the classes that get a semantic query.
            features: (B, N, D) encoded patches, the content of instance queries.
            denoising: training only.
        """
        batch = features.shape[0]
        text = self.text_content(embeddings)
        semantic_boxes = center_size_to_corners(self.text_box(embeddings).sigmoid().float())
        content = [text[semantic_classes].expand(batch, -1, -1)]
        boxes = [semantic_boxes[semantic_classes].expand(batch, -1, -1)]
        num_instance = 0
        if self.instance_queries:
            num_instance = features.shape[1]
            content.append(features)
            boxes.append(patches.normalized_boxes)
        num_denoising = 0
        if denoising is not None:
            num_denoising = denoising.labels.shape[1]
            content.append(text[denoising.labels])
            boxes.append(denoising.boxes)
        visible = query_visibility(len(semantic_classes), num_instance, patches.valid, denoising)
        return QuerySet(
            content=torch.cat([c.to(features.dtype) for c in content], dim=1),
            boxes=torch.cat(boxes, dim=1),
            visible=visible,
            num_semantic=len(semantic_classes),
            num_instance=num_instance,
            num_denoising=num_denoising,
        )


def query_visibility(num_semantic: int, num_instance: int, valid: Tensor, denoising: DenoisingQueries | None) -> Tensor:
    """Who may see whom: (B, M, M) bool.

    An instance query sees the instance queries; a semantic one sees itself and the instance queries; a denoising one
    sees its own group and all of these. Padding is seen by nobody but itself (METHOD 3).
    """
    batch, num_matching = valid.shape[0], num_semantic + num_instance
    num_denoising = 0 if denoising is None else denoising.labels.shape[1]
    total = num_matching + num_denoising
    visible = torch.zeros(batch, total, total, dtype=torch.bool, device=valid.device)
    if num_instance:
        visible[:, :, num_semantic:num_matching] = valid.unsqueeze(1)
    if denoising is not None:
        visible[:, num_matching:, :num_semantic] = True
        same_group = denoising.group[:, None] == denoising.group[None, :]
        visible[:, num_matching:, num_matching:] = same_group & denoising.valid.unsqueeze(1)
    return visible | torch.eye(total, dtype=torch.bool, device=valid.device)


def center_size_to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) from (cx, cy, w, h) to XYXY."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)
