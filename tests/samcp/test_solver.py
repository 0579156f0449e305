"""Learning rates, weight decay and gradient clipping of the optimizer."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver import build_lr_scheduler
from torch import nn

from samcp import add_samcp_config
from samcp.solver import build_optimizer


class Model(nn.Module):
    """Model with the parameter names of SAM-CP on Detectron2's FPN."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict(
            {"bottom_up": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "fpn_lateral2": nn.Conv2d(4, 4, 1)}
        )
        self.norm = nn.LayerNorm(4)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(5, 4))
        self.head = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def config():
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = 1e-3, 1e-2
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    return cfg


def test_parameter_groups():
    model = Model()
    optimizer = build_optimizer(config(), model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = {
        names[p]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert settings == {
        "relative_position_bias_table": (1e-3, 0),
        "backbone.bottom_up.0.weight": (1e-4, 1e-2),
        "backbone.bottom_up.0.bias": (1e-4, 1e-2),
        "backbone.bottom_up.1.weight": (1e-4, 0),
        "backbone.bottom_up.1.bias": (1e-4, 0),
        "backbone.fpn_lateral2.weight": (1e-3, 1e-2),  # not pretrained: full learning rate
        "backbone.fpn_lateral2.bias": (1e-3, 1e-2),
        "norm.weight": (1e-3, 0),
        "norm.bias": (1e-3, 0),
        "head.weight": (1e-3, 1e-2),
        "head.bias": (1e-3, 1e-2),
    }


def test_biases_can_have_their_own_rate_and_decay():
    cfg, model = config(), Model()
    cfg.SOLVER.BIAS_LR_FACTOR, cfg.SOLVER.WEIGHT_DECAY_BIAS = 2.0, 0.0
    groups = build_optimizer(cfg, model).param_groups
    [bias] = [g for g in groups if any(p is model.head.bias for p in g["params"])]
    [weight] = [g for g in groups if any(p is model.head.weight for p in g["params"])]
    assert (bias["lr"], bias["weight_decay"]) == (2e-3, 0)
    assert (weight["lr"], weight["weight_decay"]) == (1e-3, 1e-2)


def test_clipping_by_another_norm():
    cfg, model = config(), Model()
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = float("inf")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    build_optimizer(cfg, model).step()
    assert model.head.weight.grad.max() == pytest.approx(0.1, rel=1e-3)


def test_clipping_uses_total_norm():
    model = Model()
    optimizer = build_optimizer(config(), model)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, 7.0)
    trained[0].grad = None  # a parameter that the batch did not use
    optimizer.step()
    gradients = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    assert gradients.norm() == pytest.approx(0.1, rel=1e-3)
    assert gradients.std() == pytest.approx(0, abs=1e-8)  # all gradients are scaled by the same factor


def test_rejects_other_clipping():
    cfg = config()
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
    with pytest.raises(ValueError, match="'value'.*full_model"):
        build_optimizer(cfg, Model())


def test_schedule_keeps_ratio_of_learning_rates():
    cfg = config()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 10, (4,), 0
    optimizer = build_optimizer(cfg, Model())
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(10):
        rates.append(sorted({round(group["lr"], 10) for group in optimizer.param_groups}))
        optimizer.step()
        scheduler.step()
    assert rates[0] == rates[3] == [1e-4, 1e-3]
    assert rates[4] == rates[9] == [1e-5, 1e-4]
