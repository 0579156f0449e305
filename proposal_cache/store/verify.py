"""Checking a cache: every checksum of every file."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proposal_cache.errors import CacheError, FormatError
from proposal_cache.store.finalize import shard_files
from proposal_cache.store.index import KeyIndex
from proposal_cache.store.manifest import MANIFEST, Manifest
from proposal_cache.store.shard import Shard


@dataclass(frozen=True)
class Verdict:
    """What `verify` found of one file: its name, and what is wrong with it and what to do; None where it is sound."""

    file: str
    problem: str | None


def verify(path: str | os.PathLike[str]) -> Iterator[Verdict]:
    """Reads everything in a cache and gives a verdict on each file as it goes: manifest, index, then each shard.

    Deleting a bad shard and running the generator again makes its images anew, and nothing else.

    Raises:
        CacheError: where there is no cache, or its manifest cannot be read.
    """
    cache = Path(path)
    manifest = Manifest.load(cache)
    yield Verdict(MANIFEST, None if manifest.index else "names no index yet: the cache was never finished")
    index: KeyIndex | None = None
    if manifest.index:
        try:
            index = KeyIndex.open(cache, manifest.index)
            yield Verdict(manifest.index.file, None)
        except CacheError as error:
            yield Verdict(manifest.index.file, f"{error}; run the generator again, it makes a new index")
    listed = {shard.file for shard in manifest.shards}
    for number, info in enumerate(manifest.shards):
        yield Verdict(info.file, _problem(cache / info.file, manifest, index, number))
    for file in shard_files(cache):
        if file.name not in listed:
            yield Verdict(file.name, "is not in the manifest; run the generator again, it takes complete shards up")


def _problem(path: Path, manifest: Manifest, index: KeyIndex | None, number: int) -> str | None:
    try:
        shard = Shard.open(path, manifest.shards[number], len(manifest.generators))
        shard.file.verify()
        for row, key in enumerate(shard.read_keys()):
            shard.read(row)
            place = index.find(key) if index else (number, row)
            if place is None or place > (number, row):  # a key in two shards counts in the first
                raise FormatError(f"{path} has the image {key.decode(errors='replace')!r}, which the index misses")
    except CacheError as error:
        return f"{error}; delete it and run the generator again, which makes just its images anew"
    return None
