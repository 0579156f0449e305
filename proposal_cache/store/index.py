"""The key index: which shard and which row of it every key is in, so that opening a cache touches no shard."""

import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError, FormatError
from proposal_cache.store.arrays import open_arrays, pack, write_durably
from proposal_cache.store.format import INDEX_SCHEMA, MAX_KEY, key_text, pack_keys
from proposal_cache.store.manifest import IndexInfo


class KeyIndex:
    """The sorted keys of a cache, as bytes, and where each is.

    It is a handful of flat arrays, not a dictionary of objects: small, and shared with forked workers for good, since
    looking up a key writes to no object's reference count. A key is found by its hash: a binary search reads ten times
    as many places, which after a load are no longer in the processor's cache.
    """

    def __init__(self, text: bytes, shard: NDArray[np.uint32], row: NDArray[np.uint32]) -> None:
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
        self._text = text
        self._bounds = np.concatenate([[0], ends]).astype(np.int64).data
        self._shard, self._row = shard.data, row.data
        # Positions by the last bits of their keys' hashes: those of one bucket lie side by side.
        hashes = np.fromiter(map(zlib.crc32, io.BytesIO(text)), np.uint32, len(ends))  # line by line, with its end
        self._mask = (1 << len(ends).bit_length()) - 1
        buckets = hashes & np.uint32(self._mask)
        self._positions = np.argsort(buckets, kind="stable").astype(np.uint32).data
        self._starts = np.searchsorted(np.sort(buckets), np.arange(self._mask + 2)).astype(np.uint32).data

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, position: int) -> bytes:
        return self._text[self._bounds[position] : self._bounds[position + 1] - 1]

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self)))

    def find(self, key: bytes) -> tuple[int, int] | None:
        """The number of the shard and the row in it, or None."""
        bucket = zlib.crc32(key + b"\n") & self._mask
        for position in self._positions[self._starts[bucket] : self._starts[bucket + 1]]:
            if self[position] == key:
                return self._shard[position], self._row[position]
        return None

    @classmethod
    def open(cls, cache: Path, info: IndexInfo) -> "KeyIndex":
        """The index that the manifest means by `info`.

        Raises:
            FormatError: where it is damaged, or another one, or holds keys that lead out of a folder.
        """
        file = open_arrays(cache / info.file, "index", INDEX_SCHEMA)
        if file.checksum != info.checksum:
            raise FormatError(f"{file.path} is not the index that the manifest names: its checksum differs")
        lengths = {name: array.length for name, array in file.arrays.items()}
        if not lengths["shard"] == lengths["row"] == info.images or lengths["keys"] > info.images * (MAX_KEY + 1):
            raise FormatError(f"{file.path} is damaged: its arrays are of {lengths} for {info.images} images")
        shard, row = file.read_checked("shard"), file.read_checked("row")
        try:
            index = cls(key_text(file.read_checked("keys")), shard, row)
        except FormatError:
            raise
        except CacheError as error:
            raise FormatError(f"{file.path} is damaged or hostile: {error}") from error
        if len(index) != info.images:
            raise FormatError(f"{file.path} is damaged: {len(index)} keys for {info.images} images")
        return index


def write_index(cache: Path, shard_keys: Sequence[Sequence[bytes]]) -> IndexInfo:
    """Writes the index of the keys of each shard; of a key in two shards the first one counts."""
    lengths = [len(keys) for keys in shard_keys]
    keys = [key for keys in shard_keys for key in keys]
    shard = np.repeat(np.arange(len(lengths), dtype="<u4"), lengths)
    row = np.concatenate([np.arange(n, dtype="<u4") for n in [0, *lengths]])
    order = sorted(range(len(keys)), key=keys.__getitem__)  # stable: the first shard's stays first
    order = [i for n, i in enumerate(order) if n == 0 or keys[i] != keys[order[n - 1]]]
    arrays = {"keys": pack_keys(keys[i] for i in order), "shard": shard[order], "row": row[order]}
    data, checksum = pack("index", arrays)
    info = IndexInfo(f"index-{checksum[:16]}.h5", len(order), checksum)
    write_durably(cache / info.file, data)
    return info
