"""Affinity (Algorithm 1), its normalisation and merged boxes, against loops over scalars."""

import math

import pytest
import torch

from samcp.modeling.affinity_decoder import Affinity, merged_boxes, normalize_affinity


def literal_affinity(module: Affinity, queries: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Compute Algorithm 1 with loops over queries, patches and channels."""
    heads, dim = module.num_heads, queries.shape[1]
    width = dim // heads
    out = torch.zeros(len(queries), len(patches), dtype=queries.dtype)
    for m, query in enumerate(queries):
        for n, patch in enumerate(patches):
            q, k = query + module.query_ffn(query), patch + module.patch_ffn(patch)
            x = [
                sum(q[h * width + d] * k[h * width + d] for d in range(width)) / math.sqrt(width) for h in range(heads)
            ]
            for linear in module.mix:
                x = [
                    sum(linear.weight[o, i] * max(x[i], torch.zeros(())) for i in range(len(x))) + linear.bias[o]
                    for o in range(linear.out_features)
                ]
            bias = sum(patch[d] * module.patch_bias[d] for d in range(dim)) + module.bias
            out[m, n] = x[0] / math.exp(module.log_scale.item()) + bias
    return out


def test_affinity_equals_algorithm_1() -> None:
    torch.manual_seed(0)
    module = Affinity(8, 4, 12).double()
    torch.nn.init.normal_(module.patch_bias)
    torch.nn.init.constant_(module.log_scale, 0.3)
    queries, patches = torch.randn(3, 8).double(), torch.randn(5, 8).double()
    fast = module(queries[None], patches[None])[0]
    assert torch.allclose(fast.double(), literal_affinity(module, queries, patches), atol=1e-5)


def test_initial_affinity_equals_prior() -> None:
    """If all products are 0, the affinity is that of the bias: sigmoid(b0) = 0.01."""
    module = Affinity(8, 4, 12)
    for linear in module.mix:
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    logits = module(torch.randn(1, 3, 8), torch.randn(1, 5, 8))
    assert logits.detach().sigmoid().numpy() == pytest.approx(0.01, abs=1e-6)


def test_affinity_gradients() -> None:
    torch.manual_seed(0)
    module = Affinity(4, 2, 6).double()
    inputs = (torch.randn(1, 2, 4).double().requires_grad_(), torch.randn(1, 3, 4).double().requires_grad_())
    assert torch.autograd.gradcheck(module, inputs)


def test_normalize_affinity() -> None:
    affinity = torch.tensor([[0.2, 0.4, 0.6, 0.9], [0.5, 0.5, 0.5, 0.1], [0.0, 0.0, 0.0, 0.7]])
    valid = torch.tensor([True, True, True, False])
    normalized = normalize_affinity(affinity, valid)
    assert normalized[0].tolist() == pytest.approx([0.0, 0.5, 1.0, 0.0])
    assert normalized[1].tolist() == [1.0, 1.0, 1.0, 0.0], "a constant row masks nothing"
    assert normalized[2].tolist() == [0.0, 0.0, 0.0, 0.0], "a row of zeros selects no patch"


def test_merged_boxes() -> None:
    boxes = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.5, 0.3], [0.6, 0.6, 0.9, 0.8]]])
    members = torch.tensor([[[True, True, False], [False, False, True], [False, False, False]]])
    merged = merged_boxes(members, boxes)[0]
    assert torch.allclose(merged[0], torch.tensor([0.1, 0.1, 0.5, 0.4]))
    assert torch.allclose(merged[1], boxes[0, 2])
    assert merged[2].tolist() == [0.0, 0.0, 1.0, 1.0], "no members: the whole image"
