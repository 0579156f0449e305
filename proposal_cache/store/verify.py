"""Verification of all checksums of a cache."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proposal_cache.errors import FormatError, StorageError
from proposal_cache.store.finalize import shard_files
from proposal_cache.store.index import KeyIndex
from proposal_cache.store.manifest import MANIFEST, Manifest
from proposal_cache.store.reader import MISSING_INDEX, MISSING_SHARD, naming_fix
from proposal_cache.store.shard import Shard


@dataclass(frozen=True)
class Verdict:
    """Result for one file: its name, and the problem with its remedy; None if the file is valid."""

    file: str
    problem: str | None


def verify(path: str | os.PathLike[str]) -> Iterator[Verdict]:
    """Read all files of a cache and yield a verdict for each: manifest, index, then shards.

    To repair a cache, delete its damaged shards and run the generator again, which generates only their images.

    >>> with CacheWriter("patches", {"name": "example"}, dataset="photos") as writer:
    ...     writer.add("0001", Patches.from_masks(np.ones((1, 4, 6), dtype=bool)))
    >>> [verdict.file for verdict in verify("patches") if verdict.problem is None]
    ['manifest.json', 'index-...h5', 'shard-r000-00000.h5']

    Raises:
        CacheError: if there is no cache, or its manifest is damaged.
        StorageError: if the directory cannot be read.
    """
    cache = Path(path)
    manifest = Manifest.load(cache)
    yield Verdict(MANIFEST, None if manifest.index else "has no index: the cache was never finished")
    index: KeyIndex | None = None
    if manifest.index:
        try:
            with naming_fix(cache / manifest.index.file, MISSING_INDEX):
                index = KeyIndex.open(cache, manifest.index)
            yield Verdict(manifest.index.file, None)
        except FormatError as error:
            yield Verdict(manifest.index.file, f"{error}; {MISSING_INDEX}")
        except StorageError as error:
            yield Verdict(manifest.index.file, str(error))
    listed = {shard.file for shard in manifest.shards}
    for number, info in enumerate(manifest.shards):
        yield Verdict(info.file, _problem(cache / info.file, manifest, index, number))
    for file in shard_files(cache):
        if file.name not in listed:
            yield Verdict(file.name, "is not in the manifest; run the generator again, which adds complete shards")


def _problem(path: Path, manifest: Manifest, index: KeyIndex | None, number: int) -> str | None:
    try:
        with naming_fix(path, MISSING_SHARD):
            _check_shard(path, manifest, index, number)
    except FormatError as error:
        return f"{error}; delete it and run the generator again, which generates only its images"
    except StorageError as error:  # the file may be undamaged
        return str(error)
    return None


def _check_shard(path: Path, manifest: Manifest, index: KeyIndex | None, number: int) -> None:
    shard = Shard.open(path, manifest.shards[number], len(manifest.generators))
    keys = shard.read_keys()
    for column in ("patches", "rles"):  # the others were checked when they were read
        shard.file.check(column)
    for row, key in enumerate(keys):
        shard.read(row)
        position = index.find(key) if index else (number, row)
        if position is None or position > (number, row):  # for a key in two shards, the index has the first
            raise FormatError(f"{path} contains {key.decode(errors='replace')!r}, which is missing in the index")
