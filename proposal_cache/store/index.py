"""Key index: the shard and row of each key, so that opening a cache reads no shard."""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import FormatError
from proposal_cache.store.columns import open_columns, pack
from proposal_cache.store.durable import write_durably
from proposal_cache.store.format import INDEX_SCHEMA, pack_keys, read_keys
from proposal_cache.store.manifest import IndexInfo

# Per key: start and end in the text of all keys, shard, row.
_ENTRY = struct.Struct("<QQII")
_ENTRY_TYPE = np.dtype("<u8,<u8,<u4,<u4")


class KeyIndex:
    """Sorted keys of a cache, as bytes, with the position of each.

    A hash table in flat arrays instead of a dict: small, and its memory stays shared with forked workers, because a
    lookup changes no reference counts. A binary search would read ten times as many memory locations, which are
    usually not in the CPU cache. It is built from sorted keys, each followed by a newline, and their positions (K,).
    """

    def __init__(self, text: bytes, shard: NDArray[np.uint32], row: NDArray[np.uint32]) -> None:
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
        starts = np.append([0], ends[:-1] + 1)[: len(ends)]
        # Entries of one bucket (the last bits of the hash) are adjacent.
        hashes = np.fromiter(map(zlib.crc32, io.BytesIO(text)), np.uint32, len(ends))  # including the newline
        self._mask = (1 << len(ends).bit_length()) - 1
        buckets = hashes & np.uint32(self._mask)
        order = np.argsort(buckets, kind="stable")
        self._text = text
        columns = [column[order] for column in (starts, ends, shard, row)]
        self._entries = np.rec.fromarrays(columns, _ENTRY_TYPE).tobytes()
        self._buckets = np.searchsorted(buckets[order], np.arange(self._mask + 2)).astype(np.uint32).data

    def __len__(self) -> int:
        return len(self._entries) // _ENTRY.size

    def __iter__(self) -> Iterator[bytes]:
        return (line[:-1] for line in io.BytesIO(self._text))

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Return shard and row of a key; None if it is missing."""
        bucket = zlib.crc32(key + b"\n") & self._mask
        for n in range(self._buckets[bucket], self._buckets[bucket + 1]):
            start, end, shard, row = _ENTRY.unpack_from(self._entries, n * _ENTRY.size)
            if self._text[start:end] == key:
                return shard, row
        return None

    @classmethod
    def open(cls, cache: Path, info: IndexInfo) -> "KeyIndex":
        """Open the index that `info` in the manifest names; raise FormatError if it is damaged or another one."""
        file = open_columns(cache / info.file, "index", INDEX_SCHEMA)
        if file.checksum != info.checksum:
            raise FormatError(f"{file.path} is not the index in the manifest: its checksum differs")
        lengths = {name: column.length for name, column in file.columns.items()}
        if not lengths["shard"] == lengths["row"] == info.images:
            raise FormatError(f"{file.path} is damaged: its columns have lengths {lengths} for {info.images} images")
        return cls(read_keys(file, info.images), file.read_checked("shard"), file.read_checked("row"))


def write_index(cache: Path, shard_keys: Sequence[Sequence[bytes]]) -> IndexInfo:
    """Write the index of the keys of each shard; for a key in two shards the first one is used."""
    lengths = [len(keys) for keys in shard_keys]
    keys = [key for keys in shard_keys for key in keys]
    shard = np.repeat(np.arange(len(lengths), dtype="<u4"), lengths)
    row = np.concatenate([np.arange(n, dtype="<u4") for n in [0, *lengths]])
    order = sorted(range(len(keys)), key=keys.__getitem__)  # stable: the first shard comes first
    order = [i for n, i in enumerate(order) if n == 0 or keys[i] != keys[order[n - 1]]]
    columns = {"keys": pack_keys(keys[i] for i in order), "shard": shard[order], "row": row[order]}
    data, checksum = pack("index", columns)
    info = IndexInfo(f"index-{checksum[:16]}.h5", len(order), checksum)
    write_durably(cache / info.file, data)
    return info
