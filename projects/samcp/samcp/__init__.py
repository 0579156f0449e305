"""SAM-CP, a Detectron2 project.

The names below are imported on first use, so that ``--help`` of a command needs neither PyTorch nor Detectron2. The
first use registers the meta-architecture and the backbones in Detectron2; ``import samcp.data`` registers the datasets.
"""

from typing import TYPE_CHECKING, Any

from samcp.upstream_warnings import ignore_upstream_warnings

__all__ = ["SAMCP", "RLEMasks", "__version__", "add_samcp_config"]

ignore_upstream_warnings()

if TYPE_CHECKING:
    from samcp.config import add_samcp_config
    from samcp.modeling.meta_arch import SAMCP
    from samcp.structures import RLEMasks

    __version__: str
else:

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from proposal_cache.version import installed_version

            return installed_version()
        if name in __all__:
            from samcp import config, structures
            from samcp.modeling import meta_arch

            names = {
                "SAMCP": meta_arch.SAMCP,
                "RLEMasks": structures.RLEMasks,
                "add_samcp_config": config.add_samcp_config,
            }
            globals().update(names)
            return names[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
