"""Reading a cache."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from proposal_cache.errors import CacheError, FormatError, MissingKeyError
from proposal_cache.patches import Patches
from proposal_cache.store.index import KeyIndex
from proposal_cache.store.manifest import Manifest
from proposal_cache.store.shard import Shard

_MAX_DESCRIPTORS = 128  # of shards held open by one cache; a process may often have 1024


class PatchCache(Mapping[str, Patches]):
    """The patches of a dataset, by image key: `cache["train/0001"]` gives `Patches`; keys come in sorted order.

    Opening reads the manifest and the key index, no shard. A shard is laid open when the first of its images is asked
    for, and an image costs two short reads. May be used from several threads, forked (descriptors are shared
    without harm: reads name their offset) and pickled (the copy opens the cache anew).

    Raises:
        CacheError: where there is no cache, or one that was never finished.
        FormatError: where the manifest or the index is damaged or of another version; on access, where a shard is.
        StorageError: where the disk or network mount is gone.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        if self.manifest.index is None:
            raise CacheError(
                f"{self.path} was never finished: run the command that was making it again, it continues where it was"
            )
        self._index = KeyIndex.open(self.path, self.manifest.index)
        self._shards: dict[int, Shard] = {}
        self._open: dict[int, None] = {}  # those that hold a descriptor, oldest first

    def __getitem__(self, key: str) -> Patches:
        """The patches of one image.

        Raises:
            MissingKeyError: where the cache has none of it.
            FormatError, StorageError: naming the shard.
        """
        place = self._index.find(_encoded(key))
        if place is None:
            raise MissingKeyError(self._why_missing(key))
        number, row = place
        shard = self._shard(number)
        if row >= len(shard):
            raise FormatError(f"{self.path} is damaged: its index looks for row {row} in {shard.path.name}")
        return shard.read(row)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._index.find(_encoded(key)) is not None

    def __iter__(self) -> Iterator[str]:
        return (key.decode() for key in self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __eq__(self, other: object) -> bool:
        return self is other  # a mapping would compare all its patches

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"PatchCache({str(self.path)!r}): {len(self)} images of {self.manifest.dataset}"

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that the cache has no patches of, in their order."""
        return [key for key in keys if key not in self]

    def require(
        self, *, generators: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None, dataset: str | None = None
    ) -> None:
        """Raises `MismatchError`, naming each difference, unless the cache is of this dataset and these generators."""
        self.manifest.require(self.path, generators=generators, dataset=dataset)

    def __reduce__(self) -> tuple[type["PatchCache"], tuple[Path]]:
        return PatchCache, (self.path,)

    def _shard(self, number: int) -> Shard:
        shard = self._shards.get(number)
        if shard is None:
            if number >= len(self.manifest.shards):
                raise FormatError(f"{self.path} is damaged: its index names shard {number}, which it does not have")
            info = self.manifest.shards[number]
            shard = self._shards[number] = Shard.open(self.path / info.file, info, len(self.manifest.generators))
        if number not in self._open:
            self._open[number] = None
            for old in list(self._open)[: max(0, len(self._open) - _MAX_DESCRIPTORS)]:
                self._open.pop(old, None)
                self._shards[old].file.release()
        return shard

    def _why_missing(self, key: str) -> str:
        reason = self.manifest.failures.get(key)
        if reason is not None:
            return f"{self.path} has no patches of {key!r}: its generator failed ({reason})"
        return (
            f"{self.path} has no patches of {key!r} among its {len(self)} images of {self.manifest.dataset}: "
            "make them by running the generator again, or name the cache of this dataset"
        )


def _encoded(key: str) -> bytes:
    return key.encode(errors="surrogatepass")  # no cache holds such a key
