"""Patches of images: made once by a generator, kept in a sharded cache, served fast, worked on without decoding.

Needs numpy, h5py and pycocotools; knows nothing of the model that reads the patches.
"""

from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches

__all__ = ["CacheError", "Patches"]
