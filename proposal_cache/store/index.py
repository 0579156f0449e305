"""The key index: which shard and which row of it every key is in, so that opening a cache touches no shard."""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError, FormatError
from proposal_cache.store.columns import open_arrays, pack
from proposal_cache.store.durable import write_durably
from proposal_cache.store.format import INDEX_SCHEMA, MAX_KEY, key_text, pack_keys
from proposal_cache.store.manifest import IndexInfo

# Of a key: where it starts and ends in the text of all keys, its shard, its row in it.
_PLACE = struct.Struct("<QQII")
_PLACE_TYPE = np.dtype("<u8,<u8,<u4,<u4")


class KeyIndex:
    """The sorted keys of a cache, as bytes, and where each is.

    It is a handful of flat arrays, not a dictionary of objects: small, and shared with forked workers for good, since
    looking up a key writes to no object's reference count. A key is found by its hash: a binary search reads ten times
    as many places, which after a load are no longer in the processor's cache.
    """

    def __init__(self, text: bytes, shard: NDArray[np.uint32], row: NDArray[np.uint32]) -> None:
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
        starts = np.append([0], ends[:-1] + 1)[: len(ends)]
        # Those of one bucket, the last bits of their keys' hashes, lie side by side.
        hashes = np.fromiter(map(zlib.crc32, io.BytesIO(text)), np.uint32, len(ends))  # line by line, with its end
        self._mask = (1 << len(ends).bit_length()) - 1
        buckets = hashes & np.uint32(self._mask)
        order = np.argsort(buckets, kind="stable")
        self._text = text
        columns = [column[order] for column in (starts, ends, shard, row)]
        self._places = np.rec.fromarrays(columns, _PLACE_TYPE).tobytes()
        self._buckets = np.searchsorted(buckets[order], np.arange(self._mask + 2)).astype(np.uint32).data

    def __len__(self) -> int:
        return len(self._places) // _PLACE.size

    def __iter__(self) -> Iterator[bytes]:
        return (line[:-1] for line in io.BytesIO(self._text))

    def find(self, key: bytes) -> tuple[int, int] | None:
        """The number of the shard and the row in it, or None."""
        bucket = zlib.crc32(key + b"\n") & self._mask
        for n in range(self._buckets[bucket], self._buckets[bucket + 1]):
            start, end, shard, row = _PLACE.unpack_from(self._places, n * _PLACE.size)
            if self._text[start:end] == key:
                return shard, row
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
            text = key_text(file.read_checked("keys"))
        except FormatError:
            raise
        except CacheError as error:
            raise FormatError(f"{file.path} is damaged or hostile: {error}") from error
        keys = text.count(b"\n")
        if keys != info.images:
            raise FormatError(f"{file.path} is damaged: {keys} keys for {info.images} images")
        return cls(text, shard, row)


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
