"""Segment Anything's automatic mask generation with the same masks in a fraction of the time and memory.

PyTorch is imported on first use of a class, not with this package.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proposal_cache.generators.sam.generator import SamGenerator, SamParameters

__all__ = ["SamGenerator", "SamParameters"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("proposal_cache.generators.sam.generator"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
