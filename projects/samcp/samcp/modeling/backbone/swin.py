"""Swin transformer of Detectron2 with FPN, and loading of the official Swin weights."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from proposal_cache.torch_files import read_torch_file
from samcp.errors import CheckpointError, naming_config_key

_BIAS_TABLE = "relative_position_bias_table"
_INDEX = "relative_position_index"  # buffer, determined by the window size
_SHOWN_KEYS = 3


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Return a Swin transformer with Detectron2's FPN on MODEL.FPN.IN_FEATURES, plus one coarser level."""
    options = cfg.MODEL.SWIN
    body = SwinTransformer(
        in_chans=input_shape.channels,
        embed_dim=options.EMBED_DIM,
        depths=options.DEPTHS,
        num_heads=options.NUM_HEADS,
        window_size=options.WINDOW_SIZE,
        drop_path_rate=options.DROP_PATH_RATE,
        frozen_stages=cfg.MODEL.BACKBONE.FREEZE_AT or -1,
    )
    if options.ACTIVATION_CHECKPOINT:
        recompute_blocks(body)
    if options.WEIGHTS:
        with naming_config_key("MODEL.SWIN.WEIGHTS"):
            load_swin_weights(body, options.WEIGHTS)
    return FPN(
        bottom_up=body,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
    )


def recompute_blocks(body: SwinTransformer) -> None:
    """Enable activation checkpointing of all blocks.

    Detectron2's option uses PyTorch's default, reentrant checkpointing, which does not work with DDP.
    """
    for layer in body.layers:
        for block in layer.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def load_swin_weights(body: SwinTransformer, path: str) -> None:
    """Load official Swin weights; position tables are resized to the window size of `body`.

    Weights of the classification head are skipped. The norms of the feature maps, which the release does not have, keep
    their values.

    Raises:
        CheckpointError: the file is missing, damaged, or of another architecture.
    """
    state = body.state_dict()
    expected = {
        name: value for name, value in state.items() if not name.startswith("norm") and not name.endswith(_INDEX)
    }
    released = _read_release(path)
    missing = [name for name in expected if name not in released]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of the {len(expected)} tensors of this Swin are missing ({_abbreviate(missing)}); "
            "use an official release of this architecture"
        )
    resized = {
        name: resize_bias_table(released[name], len(value)) if name.endswith(_BIAS_TABLE) else released[name]
        for name, value in expected.items()
    }
    mismatched = [name for name, value in expected.items() if resized[name].shape != value.shape]
    if mismatched:
        raise CheckpointError(
            f"{path}: the shapes of {len(mismatched)} tensors differ from this Swin's "
            f"({_abbreviate(mismatched)}); set embed_dim, depths and num_heads to those of this release"
        )
    body.load_state_dict(state | resized)


def resize_bias_table(table: Tensor, length: int) -> Tensor:
    """Resize relative position biases (L, heads), L = (2 * window - 1)², by bicubic interpolation."""
    old, new = math.isqrt(len(table)), math.isqrt(length)
    if old == new:
        return table
    grid = table.T.unflatten(1, (old, old)).unsqueeze(0)
    return F.interpolate(grid, size=(new, new), mode="bicubic").squeeze(0).flatten(1).T


def _read_release(path: str) -> Mapping[str, Tensor]:
    if not Path(path).is_file():
        raise CheckpointError(
            f"{path}: no such file; download it from the releases of github.com/SwinTransformer/storage, or set "
            "WEIGHTS to an empty string to start from random weights"
        )
    try:
        weights = read_torch_file(path)["model"]
        weights.keys()
    except Exception as error:  # a damaged file raises many types
        raise CheckpointError(f"{path}: not a Swin checkpoint, or damaged ({error!r:.80})") from error
    return weights


def _abbreviate(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_KEYS]) + (", ..." if len(names) > _SHOWN_KEYS else "")
