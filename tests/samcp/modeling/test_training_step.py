"""Training steps: reproducible, in half precision, without trainable BatchNorm."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from samcp import SAMCP, add_samcp_config
from samcp.modeling.classifier import Classifier
from samcp.modeling.matcher import HungarianMatcher
from samcp.solver import build_optimizer

CONFIGS = Path(__file__).parents[3] / "configs"


def test_training_is_reproducible(toy: Any, toy_cfg: CfgNode) -> None:
    batches = [[toy.input(8, {0: [1, 2], 3: [5]}, seed=i), toy.input(5, {2: [0]}, seed=9 + i)] for i in range(3)]

    def train(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        model = SAMCP(toy_cfg)
        optimizer = build_optimizer(toy_cfg, model)
        for batch in batches:
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
        return model.state_dict()

    first, again, other = train(0), train(0), train(1)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_half_precision_approximates_full_precision(toy: Any, toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.SAMCP.DCA_MASK = False  # rounding may change the attention masks
    torch.manual_seed(0)
    toy_model = SAMCP(toy_cfg)
    batch = [toy.input(8, {0: [1, 2], 3: [5]}), toy.input(0, {}), toy.input(5, {2: [0]}, seed=3)]

    def losses_and_gradient(enabled: bool) -> tuple[dict[str, float], Tensor]:
        toy_model.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = toy_model(batch)
        sum(losses.values()).backward()
        heads = [p for name, p in toy_model.named_parameters() if not name.startswith("backbone.")]
        gradients = [p.grad.flatten() for p in heads if p.grad is not None]
        return {name: float(loss.detach()) for name, loss in losses.items()}, torch.cat(gradients)

    full, gradient = losses_and_gradient(False)
    half, rough_gradient = losses_and_gradient(True)
    assert full == pytest.approx(half, rel=0.25, abs=0.02)  # a loss may depend on a single row
    assert full != half
    assert torch.isfinite(rough_gradient).all()
    assert torch.cosine_similarity(gradient, rough_gradient, dim=0) > 0.9
    assert all(p.dtype == torch.float32 for p in toy_model.parameters())


def test_classifier_and_matcher_ignore_autocast() -> None:
    torch.manual_seed(0)
    classifier, words, queries = Classifier(dim=32, text_dim=16), torch.randn(9, 16), torch.randn(1, 20, 32)
    matcher = HungarianMatcher(cls=2, mask_focal=1, dice=1, l1=1, giou=1)
    truth = {
        "gt_classes": torch.randint(9, (1, 12)),
        "gt_affinity": (torch.rand(1, 12, 20) < 0.2).float(),
        "gt_weights": torch.ones(1, 12, 20),
        "gt_boxes": torch.tensor([0.1, 0.1, 0.6, 0.6]).repeat(1, 12, 1),
        "sizes": [(12, 20)],
    }
    predictions = {
        "class_logits": [torch.randn(1, 20, 9)],
        "affinity_logits": [torch.randn(1, 20, 20)],
        "boxes": [torch.tensor([0.0, 0.1, 0.6, 0.6]).repeat(1, 20, 1)],
    }
    exact = matcher(**predictions, **truth)
    with torch.autocast("cpu", torch.bfloat16):
        logits, matched = classifier(queries, words), matcher(**predictions, **truth)
    assert logits.dtype == torch.float32
    assert logits.unique().numel() > 150, "of 180; half precision would give fewer distinct values"
    assert torch.equal(matched, exact)


def test_matcher_accepts_nan() -> None:
    matcher = HungarianMatcher(cls=2, mask_focal=0, dice=0, l1=0, giou=0)
    nothing = torch.zeros(1, 1, 2)
    matches = matcher(
        class_logits=[torch.tensor([[[float("nan")], [0.0]]])],
        affinity_logits=[torch.zeros(1, 2, 2)],
        boxes=[torch.zeros(1, 2, 4)],
        gt_classes=torch.tensor([[0]]),
        gt_affinity=nothing,
        gt_weights=nothing,
        gt_boxes=torch.zeros(1, 1, 4),
        sizes=[(1, 2)],
    )
    assert matches.tolist() == [[[-1, 0]]]


class RejectValues(TorchDispatchMode):
    """Mode in which operators whose output shape depends on values, for which a GPU would wait, raise an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        assert name not in ("aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select"), name
        if name in ("aten::index.Tensor", "aten::index_put_", "aten::index_put"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), f"{name} with a mask"
        return func(*args, **(kwargs or {}))


def test_targets_and_losses_do_not_wait_for_a_gpu(toy: Any, toy_model: SAMCP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the costs of the matching are moved to the CPU, once."""
    criterion, ran = toy_model.criterion, []

    def rejecting(**inputs: Any) -> dict[str, Tensor]:
        with RejectValues():
            ran.append(criterion(**inputs))
        return ran[-1]

    monkeypatch.setattr(toy_model, "criterion", rejecting)
    toy_model([toy.input(8, {0: [1, 2], 3: [5]}), toy.input(0, {}), toy.input(5, {2: [0]}, seed=3)])
    assert ran
    with pytest.raises(AssertionError, match="with a mask"), RejectValues():
        torch.zeros(2)[torch.tensor([True, False])]


@pytest.mark.parametrize("base", ["samcp_R50", "samcp_SwinL", "samcp_lite0"])
def test_batch_norm_is_frozen(toy_vocabulary: str, base: str) -> None:
    """BatchNorm is frozen in the backbone and not used elsewhere, so that SyncBatchNorm is not needed."""
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "_base_" / f"{base}.yaml"))
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (toy_vocabulary,), "MODEL.TIMM.WEIGHTS", ""),
            *("MODEL.SWIN.WEIGHTS", "", "MODEL.SWIN.EMBED_DIM", 12, "MODEL.SWIN.NUM_HEADS", [1, 2, 3, 4]),
            *("MODEL.SWIN.DEPTHS", [1, 1, 1, 1], "MODEL.SAMCP.ENC_LAYERS", 1, "MODEL.SAMCP.DEC_LAYERS", 1),
            *("MODEL.SAMCP.TEXT.ENCODER", "learned"),
        ]
    )
    norms = [m for m in SAMCP(cfg).train().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not any(norm.training or any(p.requires_grad for p in norm.parameters()) for norm in norms)
