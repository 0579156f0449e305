"""Optimiser (METHOD 9)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from samcp.errors import UsageError

# Prefix of the backbone inside Detectron2's FPN; the FPN is not pretrained.
_PRETRAINED = "backbone.bottom_up."
# Position tables of Swin and CLIP.
_POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed", "positional_embedding")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW with a smaller learning rate for the pretrained backbone and clipping of the total gradient norm.

    The weight decay of norm layers and position tables is SOLVER.WEIGHT_DECAY_NORM, 0 as in the training scripts of
    Mask2Former and FC-CLIP.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE != "full_model":
        raise UsageError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; only 'full_model' is supported")
    return ClippedAdamW(
        parameter_groups(
            model,
            lr=cfg.SOLVER.BASE_LR,
            backbone_multiplier=cfg.SOLVER.BACKBONE_MULTIPLIER,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        ),
        max_norm=clip.CLIP_VALUE if clip.ENABLED else float("inf"),
        norm_type=clip.NORM_TYPE,
        lr=cfg.SOLVER.BASE_LR,
        # Four times as fast on a CPU. On a GPU, PyTorch's GradScaler gives a fused optimiser scaled gradients, which
        # would be clipped as if they were not.
        fused=cfg.MODEL.DEVICE == "cpu",
    )


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    backbone_multiplier: float,
    weight_decay: float,
    weight_decay_norm: float,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate (pretrained or not) and decay (norms and position tables or not).

    Biases have a learning rate and a decay of their own if `bias_lr_factor` is not 1 or `weight_decay_bias` is given.

    Returns:
        Parameter groups for torch's optimisers.
    """
    groups: list[dict[str, Any]] = get_default_optimizer_params(
        model,
        base_lr=lr,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay_norm,
        bias_lr_factor=bias_lr_factor,
        weight_decay_bias=weight_decay_bias,
        lr_factor_func=lambda name: backbone_multiplier if name.startswith(_PRETRAINED) else 1.0,
        overrides={name: {"weight_decay": weight_decay_norm} for name in _POSITION_TABLES},
    )
    return groups


class ClippedAdamW(torch.optim.AdamW):
    """AdamW with clipping of the total gradient norm, of order `norm_type`, to `max_norm`."""

    def __init__(
        self, params: Iterable[dict[str, Any]], *, max_norm: float, norm_type: float = 2.0, **kwargs: Any
    ) -> None:
        super().__init__(params, **kwargs)
        self.max_norm, self.norm_type = max_norm, norm_type

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.max_norm, self.norm_type)
        return super().step(closure)
