"""Classifier of queries, Prompt I (METHOD 5; paper Eq. 1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samcp.modeling.layers import full_precision, without_autocast


class Classifier(nn.Module):
    """Classifier of queries by class embeddings, as in GLIP; its weights do not depend on the vocabulary.

    Args:
        dim: width D of the queries.
        text_dim: width of the class embeddings.
        prior: initial probability of each class.
    """

    def __init__(self, *, dim: int, text_dim: int, prior: float = 0.01) -> None:
        super().__init__()
        self.query_proj = nn.Linear(dim, dim)
        self.text_proj = nn.Linear(text_dim, dim)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.text_bias = nn.Parameter(torch.zeros(text_dim))
        self.bias = nn.Parameter(torch.tensor(-math.log((1 - prior) / prior)))

    def forward(self, queries: Tensor, embeddings: Tensor) -> Tensor:
        """Return logits S (B, M, C) of ``queries`` (B, M, D) for class ``embeddings`` (C, text_dim)."""
        unit = F.normalize(full_precision(embeddings), dim=-1)
        q = F.normalize(full_precision(self.query_proj(queries)), dim=-1)
        text = full_precision(self.text_proj(10 * unit))
        with without_autocast(queries):
            return q @ text.T / self.log_scale.exp() + (unit @ self.text_bias + self.bias)
