"""Segment-everything patches: generated once, stored in a sharded cache, processed without decoding.

Usable alone: depends on numpy, h5py, pycocotools, zstandard, pillow and tqdm; generators need their own libraries.
"""

from proposal_cache.errors import CacheError
from proposal_cache.generation.sources import image_key
from proposal_cache.patches import Patches
from proposal_cache.store import CacheWriter, PatchCache, finalize, merge, verify

__all__ = ["CacheError", "CacheWriter", "PatchCache", "Patches", "finalize", "image_key", "merge", "verify"]
