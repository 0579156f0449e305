"""Segment-everything patches: generated once, stored in a sharded cache, processed without decoding.

Usable alone: depends on numpy, h5py, pycocotools, zstandard, pillow and tqdm. Generators, URLs and tar files need
their own libraries, which are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from proposal_cache.errors import CacheError
from proposal_cache.generation.sources import image_key
from proposal_cache.patches import Patches
from proposal_cache.store import CacheWriter, PatchCache, finalize, merge, verify

if TYPE_CHECKING:
    from proposal_cache.generators.contours import ContourGenerator
    from proposal_cache.generators.sam import SamAutomaticMaskGenerator, SamGenerator

    __version__: str

__all__ = [
    "CacheError",
    "CacheWriter",
    "ContourGenerator",
    "PatchCache",
    "Patches",
    "SamAutomaticMaskGenerator",
    "SamGenerator",
    "__version__",
    "finalize",
    "image_key",
    "merge",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        return importlib.import_module(f"{__name__}.version").installed_version()
    module = "contours" if name == "ContourGenerator" else "sam"
    return getattr(importlib.import_module(f"{__name__}.generators.{module}"), name)
