"""Patches of images: made once by a generator, kept in a sharded cache, served fast, worked on without decoding.

Needs numpy, h5py, pycocotools, zstandard and pillow; knows nothing of the model that reads the patches.
"""

from proposal_cache.errors import CacheError
from proposal_cache.generation.sources import image_key
from proposal_cache.patches import Patches
from proposal_cache.store import CacheWriter, PatchCache, finalize, verify

__all__ = ["CacheError", "CacheWriter", "PatchCache", "Patches", "finalize", "image_key", "verify"]
