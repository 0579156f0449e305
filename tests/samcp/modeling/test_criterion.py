"""Denominators and weights of the losses per kind of query, against sums over rows."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from samcp.modeling.affinity_decoder import DecoderOutput
from samcp.modeling.criterion import Criterion
from samcp.modeling.losses import affinity_focal_loss, dice_loss, focal_loss
from samcp.modeling.queries import QuerySet
from samcp.modeling.targets import QueryTargets

SEMANTIC, INSTANCE, DENOISING, PATCHES, CLASSES = 2, 4, 3, 4, 5
# Positive rows of one image, among its queries of each kind.
POSITIVE = {"_sem": [1], "": [0, 3], "_dn": [0, 1]}
ROWS = {
    "_sem": range(SEMANTIC),
    "": range(SEMANTIC, SEMANTIC + INSTANCE),
    "_dn": range(SEMANTIC + INSTANCE, SEMANTIC + INSTANCE + DENOISING),
}


def make_targets(kind: str) -> QueryTargets:
    """Return targets: a class and two patches for positive queries, their own patch for unmatched instance queries."""
    rows = len(ROWS[kind])
    classes, affinity = torch.zeros(1, rows, CLASSES), torch.zeros(1, rows, PATCHES)
    positive = torch.zeros(1, rows, dtype=torch.bool)
    for row in POSITIVE[kind]:
        classes[0, row, row] = 1
        affinity[0, row, row : row + 2] = 1
        positive[0, row] = True
    unmatched = ~positive & (kind == "")
    affinity = affinity + torch.diag_embed(unmatched.float()) if kind == "" else affinity
    weights = (positive | unmatched)[..., None].expand_as(affinity).float()
    return QueryTargets(classes, torch.ones_like(classes), affinity, weights, positive, unmatched)


class FakeTargetBuilder:
    """Target builder that returns the targets above."""

    def __init__(self, self_affinity: bool, layers: int) -> None:
        self.self_affinity = self_affinity
        self.layers = layers

    def semantic(self, **_: Any) -> QueryTargets:
        return make_targets("_sem")

    def instance(self, **_: Any) -> list[QueryTargets]:
        return [make_targets("")] * self.layers

    def denoising(self, **_: Any) -> QueryTargets:
        return make_targets("_dn")


@pytest.fixture
def predictions() -> tuple[Tensor, Tensor]:
    """Return class logits and affinity logits of all queries of one image."""
    torch.manual_seed(0)
    total = SEMANTIC + INSTANCE + DENOISING
    return torch.randn(1, total, CLASSES), torch.randn(1, total, PATCHES)


def compute(*layers: tuple[Tensor, Tensor], self_affinity: bool = True, weight: float = 0.5) -> dict[str, Tensor]:
    """Return the losses of layers, each given by its class logits and affinity logits."""
    queries = QuerySet(torch.zeros(0), torch.zeros(0), torch.zeros(0), SEMANTIC, INSTANCE)
    nothing: Mapping[str, Any] = dict.fromkeys(
        ("semantic_classes", "thing_classes", "patches", "in_crowd", "regions", "instances")
    )
    criterion = Criterion(
        targets=FakeTargetBuilder(self_affinity, len(layers)),  # type: ignore[arg-type]
        cls=2,
        mask_focal=1,
        dice=3,
        self_affinity=weight,
    )
    return criterion(
        outputs=[DecoderOutput(torch.zeros(0), affinity, torch.zeros(0)) for _, affinity in layers],
        class_logits=[logits for logits, _ in layers],
        queries=queries,
        denoising=SimpleNamespace(),  # type: ignore[arg-type]
        **nothing,  # type: ignore[arg-type]
    )


def test_losses_are_normalized_per_kind_of_query(predictions: tuple[Tensor, Tensor]) -> None:
    losses = compute(predictions)
    logits, affinity = (x[0] for x in predictions)
    for kind, rows in ROWS.items():
        targets = make_targets(kind)
        count = len(POSITIVE[kind])
        by_row = focal_loss(logits[list(rows)], targets.classes[0], targets.class_weights[0]).sum(-1)
        assert losses["loss_cls" + kind] == pytest.approx(float(2 * by_row.sum() / count), rel=1e-5)
        positive = [rows[i] for i in POSITIVE[kind]]
        goal = targets.affinity[0, POSITIVE[kind]]
        ones = torch.ones_like(goal)
        focal, dice = affinity_focal_loss(affinity[positive], goal, ones), dice_loss(affinity[positive], goal, ones)
        assert losses["loss_mask_focal" + kind] == pytest.approx(float(focal.sum() / count), rel=1e-5)
        assert losses["loss_dice" + kind] == pytest.approx(float(3 * dice.sum() / count), rel=1e-5)


def test_self_affinity_loss(predictions: tuple[Tensor, Tensor]) -> None:
    losses = compute(predictions, weight=0.5)
    unmatched = [i for i in range(INSTANCE) if i not in POSITIVE[""]]
    rows, goal = predictions[1][0][[ROWS[""][i] for i in unmatched]], torch.eye(PATCHES)[unmatched]
    focal, dice = (term(rows, goal, torch.ones_like(goal)) for term in (affinity_focal_loss, dice_loss))
    assert losses["loss_mask_focal_self"] == pytest.approx(float(0.5 * focal.mean()), rel=1e-5)
    assert losses["loss_dice_self"] == pytest.approx(float(0.5 * 3 * dice.mean()), rel=1e-5)


def test_disabling_self_affinity_keeps_other_losses(predictions: tuple[Tensor, Tensor]) -> None:
    """Table 4's "BG" ablation."""
    with_it, without = compute(predictions), compute(predictions, self_affinity=False)
    assert with_it.keys() - without.keys() == {"loss_mask_focal_self", "loss_dice_self"}
    assert all(with_it[name] == value for name, value in without.items())


def test_losses_of_each_layer(predictions: tuple[Tensor, Tensor]) -> None:
    logits, affinity = predictions
    other = (logits + 1, affinity - 1)
    both, first, last = compute(predictions, other), compute(predictions), compute(other)
    assert both == {name + "_0": value for name, value in first.items()} | last


def test_infinite_affinity_without_target_has_no_loss(predictions: tuple[Tensor, Tensor]) -> None:
    logits, affinity = predictions
    infinite = affinity.clone()
    infinite[0, ROWS["_sem"][0], 0] = float("inf")
    assert compute((logits, infinite)) == compute(predictions)
