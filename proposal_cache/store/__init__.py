"""The cache on disk: sharded HDF5 tables with checksums; see `format.py` for what its files hold."""

from proposal_cache.store.finalize import finalize
from proposal_cache.store.manifest import Manifest, ShardInfo
from proposal_cache.store.merge import MergeError, merge
from proposal_cache.store.reader import PatchCache
from proposal_cache.store.verify import Verdict, verify
from proposal_cache.store.writer import CacheWriter

__all__ = ["CacheWriter", "Manifest", "MergeError", "PatchCache", "ShardInfo", "Verdict", "finalize", "merge", "verify"]
