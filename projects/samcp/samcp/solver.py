"""The optimiser (METHOD 9)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from .config import UsageError

# Detectron2's FPN keeps the network under it here. Only that is pretrained; the FPN around it starts from nothing.
_PRETRAINED = "backbone.bottom_up."
_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
)
# Position tables of Swin and of CLIP, which are parameters and not nn.Embedding.
_POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed", "positional_embedding")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with a smaller rate for the pretrained backbone and one clip of the whole gradient's norm.

    Norm layers and embeddings decay by SOLVER.WEIGHT_DECAY_NORM, which is 0, as in the training scripts of Mask2Former
    and FC-CLIP.
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
        ),
        max_norm=clip.CLIP_VALUE if clip.ENABLED else float("inf"),
        lr=cfg.SOLVER.BASE_LR,
    )


def parameter_groups(
    model: nn.Module, *, lr: float, backbone_multiplier: float, weight_decay: float, weight_decay_norm: float
) -> list[dict[str, Any]]:
    """Trainable parameters, each once, in at most four groups: pretrained or not, norms and embeddings or not."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            rate = lr * backbone_multiplier if f"{module_name}.".startswith(_PRETRAINED) else lr
            undecayed = isinstance(module, (*_NORMS, nn.Embedding)) or name in _POSITION_TABLES
            groups.setdefault((rate, weight_decay_norm if undecayed else weight_decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that first scales the gradient of all parameters together to a norm of at most `max_norm`."""

    def __init__(self, params: Iterable[dict[str, Any]], *, max_norm: float, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.max_norm = max_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.max_norm)
        return super().step(closure)
