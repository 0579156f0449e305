"""Training steps: reproducible, in half precision, without trainable BatchNorm."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
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


def test_classifier_ignores_autocast() -> None:
    torch.manual_seed(0)
    classifier, words, queries = Classifier(dim=32, text_dim=16), torch.randn(9, 16), torch.randn(1, 20, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(queries, words)
    assert logits.dtype == torch.float32
    assert logits.unique().numel() > 150, "of 180; half precision would give fewer distinct values"


def test_matcher_ignores_autocast() -> None:
    """The costs of the queries differ by less than half precision can represent."""
    matcher = HungarianMatcher(cls=0, mask_focal=1, dice=1, l1=0, giou=0)
    members = (torch.arange(20) < 5).float()
    certainty = 1 + torch.arange(20) / 19e3
    with torch.autocast("cpu", torch.bfloat16):
        matches = matcher(
            class_logits=[torch.zeros(1, 20, 1)],
            affinity_logits=[(certainty[:, None] * (2 * members - 1))[None]],
            boxes=[torch.zeros(1, 20, 4)],
            gt_classes=torch.zeros(1, 1, dtype=torch.long),
            gt_affinity=members[None, None],
            gt_weights=torch.ones(1, 1, 20),
            gt_boxes=torch.zeros(1, 1, 4),
            sizes=[(1, 20)],
        )
    assert matches[0, 0].argmax() == 19


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


class CountCopies(TorchFunctionMode):
    """Mode that counts copies to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.copies += func in (
            Tensor.cpu,
            Tensor.tolist,
            Tensor.item,
            Tensor.__bool__,
            Tensor.__int__,
            Tensor.__float__,
        )
        return func(*args, **(kwargs or {}))


class RejectValues(TorchDispatchMode):
    """Mode in which operators whose output shape depends on values, which synchronize with a GPU, raise an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        assert not name.startswith(("aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select")), name
        assert not name.startswith(("aten::unique", "aten::_unique", "aten::repeat_interleave", "aten::bincount")), name
        if name in ("aten::index.Tensor", "aten::index_put_", "aten::index_put"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), f"{name} with a mask"
        return func(*args, **(kwargs or {}))


def test_targets_and_losses_synchronize_once(toy: Any, toy_model: SAMCP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the costs of the matching are moved to the CPU, once."""
    criterion, ran = toy_model.criterion, []

    def rejecting(**inputs: Any) -> dict[str, Tensor]:
        with RejectValues(), CountCopies() as counter:
            losses = criterion(**inputs)
        ran.append(counter.copies)
        return losses

    monkeypatch.setattr(toy_model, "criterion", rejecting)
    toy_model([toy.input(8, {0: [1, 2], 3: [5]}), toy.input(0, {}), toy.input(5, {2: [0]}, seed=3)])
    assert ran == [1]
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
