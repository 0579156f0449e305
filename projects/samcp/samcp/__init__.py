"""SAM-CP, a Detectron2 project.

The names below are imported on first use, so that ``--help`` of a command needs neither PyTorch nor Detectron2. The
first use registers the meta-architecture and the backbones in Detectron2; ``import samcp.data`` registers the datasets.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from samcp.upstream_warnings import ignore_upstream_warnings

__all__ = ["SAMCP", "Predictor", "RLEMasks", "__version__", "add_samcp_config"]

ignore_upstream_warnings()

if TYPE_CHECKING:
    from samcp.config import add_samcp_config
    from samcp.modeling.meta_arch import SAMCP
    from samcp.predictor import Predictor
    from samcp.structures import RLEMasks

    __version__: str
else:
    _MODULES = {
        "Predictor": "samcp.predictor",
        "RLEMasks": "samcp.structures",
        "SAMCP": "samcp.modeling.meta_arch",
        "add_samcp_config": "samcp.config",
    }

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from proposal_cache.version import installed_version

            return installed_version()
        if name in _MODULES:
            import_module("samcp.modeling.meta_arch")  # registers it and the backbones
            globals()[name] = getattr(import_module(_MODULES[name]), name)
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
