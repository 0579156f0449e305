"""Losses and matching costs against loops over scalars, in float64."""

import math

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
    logits, affinity = torch.randn(3, 4).double(), torch.randn(3, 6).double()
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.3, 0.3, 0.9, 0.9], [0.0, 0.5, 0.2, 1.0]]).double()
    gt_boxes = torch.tensor([[0.3, 0.2, 0.8, 0.9], [0.1, 0.1, 0.3, 0.5]]).double()
    gt_classes = torch.tensor([2, 0])
    gt = (torch.rand(2, 6) < 0.5).double()
    weights = torch.ones(2, 6).double()
    matcher = HungarianMatcher(cls=2, mask_focal=1, dice=1, l1=1, giou=1)
    cost = matcher.cost(
        class_logits=logits,
        affinity_logits=affinity,
        boxes=boxes,
        gt_classes=gt_classes,
        gt_affinity=gt,
        gt_weights=weights,
        gt_boxes=gt_boxes,
    )
    for m in range(3):
        for k in range(2):
            c = int(gt_classes[k])
            by_hand = 2 * (literal_focal(logits[m, c], 1) - literal_focal(logits[m, c], 0))
            by_hand += sum(literal_focal(affinity[m, n], gt[k, n]) for n in range(6)) / max(gt[k].sum().item(), 1)
            by_hand += dice_loss(affinity[m], gt[k], weights[k]).item()
            by_hand += (boxes[m] - gt_boxes[k]).abs().sum().item()
            by_hand -= generalized_box_iou(boxes[m : m + 1], gt_boxes[k : k + 1]).item()
            assert cost[m, k].item() == pytest.approx(by_hand)
    pairs = {(m, n): cost[m, 0] + cost[n, 1] for m in range(3) for n in range(3) if m != n}
    query, entity = matcher(
        class_logits=logits,
        affinity_logits=affinity,
        boxes=boxes,
        gt_classes=gt_classes,
        gt_affinity=gt,
        gt_weights=weights,
        gt_boxes=gt_boxes,
    )
    found = dict(zip(entity.tolist(), query.tolist(), strict=True))
    assert (found[0], found[1]) == min(pairs, key=lambda pair: pairs[pair].item())


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
