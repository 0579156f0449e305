"""Detectron2's Swin transformer under its FPN, with weights as Swin's authors released them."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from samcp.errors import CheckpointError, naming_config_key

_BIAS_TABLE = "relative_position_bias_table"
_INDEX = "relative_position_index"  # a buffer that the window's size alone determines
_SHOWN_KEYS = 3


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A Swin transformer with Detectron2's FPN on the levels of MODEL.FPN.IN_FEATURES, and one coarser level."""
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
    """Compute the blocks' activations again in the backward pass, not keep them.

    Detectron2's own option leaves it to PyTorch which way to do so, and PyTorch's way does not go with DDP.
    """
    for layer in body.layers:
        for block in layer.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def load_swin_weights(body: SwinTransformer, path: str) -> None:
    """Load the official release of a pretrained Swin; for another window its position tables are resized.

    What only classification needs is left out, and the norms of the feature maps, which it has not, stay as they are.

    Raises:
        CheckpointError: missing, damaged, or of another Swin.
    """
    own = body.state_dict()
    wanted = {name: value for name, value in own.items() if not name.startswith("norm") and not name.endswith(_INDEX)}
    given = _read_release(path)
    absent = [name for name in wanted if name not in given]
    if absent:
        raise CheckpointError(
            f"{path}: lacks {len(absent)} of the {len(wanted)} tensors of this "
            f"Swin ({_shown(absent)}); the official releases have them all"
        )
    fitted = {
        name: resize_bias_table(given[name], len(value)) if name.endswith(_BIAS_TABLE) else given[name]
        for name, value in wanted.items()
    }
    unfit = [name for name, value in wanted.items() if fitted[name].shape != value.shape]
    if unfit:
        raise CheckpointError(
            f"{path}: {len(unfit)} tensors have another shape than this Swin's "
            f"({_shown(unfit)}); set embed_dim, depths and num_heads to those of this release"
        )
    body.load_state_dict(own | fitted)


def resize_bias_table(table: Tensor, length: int) -> Tensor:
    """Relative position biases (L, heads) of one window's size for another's, L = (2 * window - 1)², by bicubics."""
    old, new = math.isqrt(len(table)), math.isqrt(length)
    if old == new:
        return table
    grid = table.T.unflatten(1, (old, old)).unsqueeze(0)
    return F.interpolate(grid, size=(new, new), mode="bicubic").squeeze(0).flatten(1).T


def _read_release(path: str) -> Mapping[str, Tensor]:
    if not Path(path).is_file():
        raise CheckpointError(
            f"{path}: there is no such file; get it from the releases of "
            "github.com/SwinTransformer/storage, or start from random weights by an empty WEIGHTS"
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)["model"]
        weights.keys()
    except Exception as error:  # what a damaged file raises has no common base
        raise CheckpointError(f"{path}: is no release of Swin, or a damaged one ({error!r:.80})") from error
    return weights


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_KEYS]) + (", ..." if len(names) > _SHOWN_KEYS else "")
