"""Semantic, instance and denoising queries and their self-attention (METHOD 3; paper 3.2.2)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from samcp.modeling.denoising import DenoisingQueries
from samcp.modeling.layers import AttentionLayer, full_precision
from samcp.modeling.patch_batch import PatchBatch

SEMANTIC_QUERY_CLASSES = ("stuff", "all")  # classes that have a semantic query


@dataclass(frozen=True)
class QuerySet:
    """Queries of B images, in the order semantic, instance, denoising.

    Attributes:
        content: (B, M, D).
        boxes: (B, M, 4) reference boxes, XYXY normalised.
        visible: (B, M - num_semantic, M) bool, True if the instance or denoising query of the row attends to the query
            of the column. Semantic queries attend to themselves and to the instance queries of valid patches.
        num_semantic, num_instance: the other queries are for denoising; num_instance is N or 0.
    """

    content: Tensor
    boxes: Tensor
    visible: Tensor
    num_semantic: int
    num_instance: int

    @property
    def num_matching(self) -> int:
        """Number of semantic and instance queries."""
        return self.num_semantic + self.num_instance


class QueryAttention(AttentionLayer):
    """Self-attention of queries, linear in the number of semantic queries, which do not attend to each other."""

    def forward(self, x: Tensor, x_pos: Tensor, visible: Tensor, valid: Tensor) -> Tensor:  # type: ignore[override]
        """Update queries (B, M, D) with positions of the same shape.

        Args:
            visible: (B, R, M) bool, attention mask of the last R queries; the others are semantic.
            valid: (B, num_instance) bool, False for instance queries that are padding.
        """
        q, k, v = self._heads(x, x_pos, x, x_pos)
        first = x.shape[1] - visible.shape[1]
        # Only denoising queries attend to semantic ones; without them the semantic keys are skipped.
        start = 0 if visible.shape[1] > valid.shape[1] else first
        others = F.scaled_dot_product_attention(
            q[:, :, first:], k[:, :, start:], v[:, :, start:], attn_mask=visible[:, None, :, start:]
        )
        if not first:
            return self._add(x, others)
        instances = slice(first, first + valid.shape[1])
        semantic = _attend_to_self_and_others(
            q[:, :, :first], k[:, :, :first], v[:, :, :first], k[:, :, instances], v[:, :, instances], valid
        )
        return self._add(x, torch.cat([semantic.to(others.dtype), others], dim=2))


def _attend_to_self_and_others(
    q: Tensor, k: Tensor, v: Tensor, others_k: Tensor, others_v: Tensor, valid: Tensor
) -> Tensor:
    """Attend from (B, heads, S, d) queries, each to its own key and to the `valid` ones of N other keys."""
    q = q / math.sqrt(q.shape[-1])
    to_others = (q @ others_k.transpose(-1, -2)).masked_fill(~valid[:, None, None, :], float("-inf"))
    to_self = (q * k).sum(-1, keepdim=True)
    weights = torch.cat([to_self, to_others], dim=-1).softmax(-1).to(v.dtype)
    return weights[..., :1] * v + weights[..., 1:] @ others_v


class QueryBuilder(nn.Module):
    """Builder of the decoder's queries from class embeddings and patches.

    Args:
        dim: width D of the queries.
        text_dim: width of the class embeddings.
        instance_queries: use each patch as an instance query ("patch-as-query").
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
            semantic_classes: indices of the classes that have a semantic query.
            features: (B, N, D) encoded patches, the content of instance queries.
            denoising: training only.
        """
        batch, num_semantic = features.shape[0], semantic_classes.shape[0]
        text = self.text_content(embeddings)
        semantic_boxes = box_convert(full_precision(self.text_box(embeddings).sigmoid()), "cxcywh", "xyxy")
        content = [text[semantic_classes].expand(batch, -1, -1)]
        boxes = [semantic_boxes[semantic_classes].expand(batch, -1, -1)]
        num_instance = 0
        if self.instance_queries:
            num_instance = features.shape[1]
            content.append(features)
            boxes.append(patches.normalized_boxes)
        if denoising is not None:
            content.append(text[denoising.labels])
            boxes.append(denoising.boxes)
        visible = query_visibility(num_semantic, num_instance, patches.valid, denoising)
        return QuerySet(
            content=torch.cat([c.to(features.dtype) for c in content], dim=1),
            boxes=torch.cat(boxes, dim=1),
            visible=visible,
            num_semantic=num_semantic,
            num_instance=num_instance,
        )


def classes_with_query(is_thing: Tensor, which: str) -> Tensor:
    """Return the indices of the classes that have a semantic query, by the name of a choice."""
    if which == "all":
        return torch.arange(len(is_thing), device=is_thing.device)
    if which == "stuff":
        return (~is_thing).nonzero().squeeze(1)
    raise ValueError(f"semantic_queries is {which!r}; choose {' or '.join(map(repr, SEMANTIC_QUERY_CLASSES))}")


def query_visibility(num_semantic: int, num_instance: int, valid: Tensor, denoising: DenoisingQueries | None) -> Tensor:
    """Return the attention mask of instance and denoising queries, (B, num_instance + num_denoising, M) bool.

    Instance queries attend to instance queries; denoising queries attend to their own group, the semantic and the
    instance queries. Only padding attends to padding, and only to itself (METHOD 3).
    """
    batch, num_matching = valid.shape[0], num_semantic + num_instance
    num_denoising = 0 if denoising is None else denoising.labels.shape[1]
    total = num_matching + num_denoising
    visible = torch.zeros(batch, total - num_semantic, total, dtype=torch.bool, device=valid.device)
    if num_instance:
        visible[:, :, num_semantic:num_matching] = valid.unsqueeze(1)
    if denoising is not None:
        visible[:, num_instance:, :num_semantic] = True
        same_group = denoising.group[:, None] == denoising.group[None, :]
        visible[:, num_instance:, num_matching:] = same_group & denoising.valid.unsqueeze(1)
    identity = torch.eye(total, dtype=torch.bool, device=valid.device)[num_semantic:]
    return visible | identity
