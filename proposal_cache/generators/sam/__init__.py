"""Segment Anything's automatic mask generation: the same masks in a fraction of the time and memory.

PyTorch is imported on first use of a class, not with this package.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proposal_cache.generators.sam.automatic import SamAutomaticMaskGenerator
    from proposal_cache.generators.sam.generator import SamGenerator, SamParameters

__all__ = ["SamAutomaticMaskGenerator", "SamGenerator", "SamParameters"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "automatic" if name == "SamAutomaticMaskGenerator" else "generator"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
