"""Patches of images: made once by a generator, kept in a sharded cache, served fast, worked on without decoding.

Needs numpy, h5py, pycocotools, zstandard and pillow; knows nothing of the model that reads the patches.
"""

from typing import TYPE_CHECKING

from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches
from proposal_cache.sources import image_key
from proposal_cache.store import CacheWriter, PatchCache, join, verify

__all__ = ["CacheError", "CacheWriter", "PatchCache", "Patches", "__version__", "image_key", "join", "verify"]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        if name == "__version__":
            from proposal_cache.version import installed_version

            return installed_version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
