"""Losses and matching costs against loops over scalars, in float64."""

import math

import numpy as np
import pytest
import torch
from torchvision.ops import generalized_box_iou

from samcp.modeling.classifier import Classifier
from samcp.modeling.losses import affinity_focal_loss, dice_loss, pairwise_affinity_costs
from samcp.modeling.matcher import HungarianMatcher, focal_class_cost


def literal_focal(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if target else -0.75 * p**2 * math.log(1 - p)


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits, targets and weights of four rows; row 2 has no positives, row 3 has weight 0."""
    torch.manual_seed(0)
    logits = torch.randn(4, 7).double() * 2
    targets = (torch.rand(4, 7) < 0.4).double()
    targets[2] = 0
    weights = ((torch.rand(4, 7) < 0.8) | (targets > 0)).double()
    weights[3] = 0
    targets[3] = 0
    return logits, targets, weights


def test_affinity_focal_loss(rows: tuple[torch.Tensor, ...]) -> None:
    logits, targets, weights = rows
    loss = affinity_focal_loss(logits, targets, weights)
    for m in range(4):
        total = sum(literal_focal(logits[m, n], targets[m, n]) for n in range(7) if weights[m, n])
        assert loss[m].item() == pytest.approx(total / max(targets[m].sum().item(), 1))


def test_dice_loss(rows: tuple[torch.Tensor, ...]) -> None:
    logits, targets, weights = rows
    loss = dice_loss(logits, targets, weights)
    for m in range(4):
        here = [n for n in range(7) if weights[m, n]]
        a = [1 / (1 + math.exp(-logits[m, n])) for n in here]
        b = [targets[m, n].item() for n in here]
        dice = (2 * sum(x * y for x, y in zip(a, b, strict=True)) + 1) / (sum(a) + sum(b) + 1)
        assert loss[m].item() == pytest.approx(1 - dice)


def test_loss_gradients(rows: tuple[torch.Tensor, ...]) -> None:
    logits, targets, weights = rows
    logits = logits.clone().requires_grad_()
    # fvcore's focal loss computes in float32, so that finite differences need a large step.
    assert torch.autograd.gradcheck(lambda x: affinity_focal_loss(x, targets, weights), (logits,), eps=1e-2, atol=2e-3)
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, targets, weights), (logits,))


def test_pairwise_costs_equal_losses(rows: tuple[torch.Tensor, ...]) -> None:
    logits, targets, weights = rows
    focal, dice = pairwise_affinity_costs(logits, targets[:3], weights[:3])
    for m in range(4):
        for k in range(3):
            pair = (logits[m], targets[k], weights[k])
            assert focal[m, k].item() == pytest.approx(affinity_focal_loss(*pair).item())
            assert dice[m, k].item() == pytest.approx(dice_loss(*pair).item())


def test_focal_class_cost() -> None:
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.0]]).double()
    cost = focal_class_cost(logits)
    for m in range(2):
        for c in range(2):
            change = literal_focal(logits[m, c], 1) - literal_focal(logits[m, c], 0)
            assert cost[m, c].item() == pytest.approx(change)


def test_matching_cost() -> None:
    """Compare the weighted sum of all cost terms per pair, and the minimum-cost assignment."""
    torch.manual_seed(1)
    logits, affinity = torch.randn(2, 6, 4).double(), torch.randn(2, 6, 6).double()
    corners = torch.rand(2, 8, 2, 2).double()
    boxes, gt_boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=-1).split([6, 2], dim=1)
    gt_classes = torch.tensor([[2, 0], [1, 1]])
    gt, weights = (torch.rand(2, 2, 6) < 0.5).double(), (torch.rand(2, 2, 6) < 0.8).double()
    truth = {"gt_classes": gt_classes, "gt_affinity": gt, "gt_weights": weights, "gt_boxes": gt_boxes}
    matcher = HungarianMatcher(cls=2, mask_focal=1, dice=1, l1=1, giou=1)
    cost = matcher.cost(class_logits=logits, affinity_logits=affinity, boxes=boxes, **truth)
    for i, m, k in np.ndindex(*cost.shape):
        c = int(gt_classes[i, k])
        by_hand = 2 * (literal_focal(logits[i, m, c], 1) - literal_focal(logits[i, m, c], 0))
        size = max((gt[i, k] * weights[i, k]).sum().item(), 1)
        terms = [weights[i, k, n] * literal_focal(affinity[i, m, n], gt[i, k, n]) for n in range(6)]
        by_hand += sum(terms).item() / size
        by_hand += dice_loss(affinity[i, m], gt[i, k], weights[i, k]).item()
        by_hand += (boxes[i, m] - gt_boxes[i, k]).abs().sum().item()
        by_hand -= generalized_box_iou(boxes[i, m : m + 1], gt_boxes[i, k : k + 1]).item()
        assert cost[i, m, k].item() == pytest.approx(by_hand)
    [matches] = matcher(
        class_logits=[logits],
        affinity_logits=[affinity],
        boxes=[boxes],
        sizes=[(2, 6), (2, 6)],
        **{name: value if name == "gt_classes" else value.float() for name, value in truth.items()},
    )
    for match, image_cost in zip(matches.tolist(), cost, strict=True):
        pairs = {(m, n): image_cost[m, 0] + image_cost[n, 1] for m in range(6) for n in range(6) if m != n}
        assert (match.index(0), match.index(1)) == min(pairs, key=lambda pair: pairs[pair].item())
        assert match.count(-1) == 4


def test_classifier_equals_equation_1() -> None:
    torch.manual_seed(0)
    classifier = Classifier(dim=6, text_dim=4).double()
    torch.nn.init.normal_(classifier.text_bias)
    torch.nn.init.constant_(classifier.log_scale, -0.4)
    queries, embeddings = torch.randn(3, 6).double(), torch.randn(5, 4).double()
    scores = classifier(queries[None], embeddings)[0]
    for m in range(3):
        q = classifier.query_proj(queries[m])
        q = q / q.norm()
        for c in range(5):
            unit = embeddings[c] / embeddings[c].norm()
            text = classifier.text_proj(10 * unit)
            by_hand = (q @ text) / math.exp(-0.4) + unit @ classifier.text_bias - math.log(99)
            assert scores[m, c].item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_classifier_is_independent_of_vocabulary() -> None:
    """The score of a class does not depend on the other classes, nor any parameter shape on their number."""
    classifier = Classifier(dim=6, text_dim=4)
    queries, embeddings = torch.randn(1, 3, 6), torch.randn(5, 4)
    both = classifier(queries, embeddings)
    assert torch.allclose(classifier(queries, embeddings[[3]]), both[..., [3]], atol=1e-6)
    assert all(5 not in p.shape for p in classifier.parameters())
