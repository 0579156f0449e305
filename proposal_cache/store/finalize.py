"""Finalization of a cache: one manifest and one key index over the complete shards of all ranks."""

import contextlib
import os
import re
from pathlib import Path

from proposal_cache.errors import FormatError, LockedError
from proposal_cache.store.durable import list_directory, remove
from proposal_cache.store.failures import JOURNAL_NAME, read_failures
from proposal_cache.store.format import INDEX_NAME, SHARD_NAME
from proposal_cache.store.index import write_index
from proposal_cache.store.lock import RankLock
from proposal_cache.store.manifest import Manifest, ShardInfo
from proposal_cache.store.shard import Shard

_SHARD_TEMPORARY = re.compile(rf"{SHARD_NAME.pattern}\.[0-9a-f]+\.tmp")
_OTHER_TEMPORARY = re.compile(r"(manifest\.json|index-[0-9a-f]{16}\.h5)\.[0-9a-f]+\.tmp")


def finalize(path: str | os.PathLike[str]) -> Manifest:
    """Make the shards of all ranks readable as one cache.

    Call it after every rank has closed its writer; a writer that is the only rank calls it itself. It may be repeated,
    also after a crash: the old manifest stays valid until the new one is complete.

    Raises:
        LockedError: if rank 0 is still writing.
        FormatError: if a shard is damaged.
        StorageError: if the directory cannot be read or written.
    """
    cache = Path(path)
    manifest = Manifest.load(cache)
    lock = RankLock(cache, 0)
    lock.acquire()
    try:
        return finalize_locked(cache, manifest)
    finally:
        lock.release()


def finalize_locked(cache: Path, manifest: Manifest) -> Manifest:
    """Finalize a cache whose rank-0 lock the caller holds."""
    shards: list[ShardInfo] = []
    keys: list[list[bytes]] = []
    for path in shard_files(cache):
        info, shard_keys = read_shard_keys(path)
        shards.append(info)
        keys.append(shard_keys)
    done = {key for shard_keys in keys for key in shard_keys}
    failures = {**manifest.failures, **read_failures(cache)}
    failures = {key: reason for key, reason in sorted(failures.items()) if key.encode() not in done}
    manifest = manifest.with_content(shards, write_index(cache, keys), failures)
    manifest.save(cache)
    _clean(cache, manifest)
    return manifest


def shard_files(cache: Path) -> list[Path]:
    """Return the complete shards in a directory, sorted by name."""
    return [path for path in list_directory(cache) if SHARD_NAME.fullmatch(path.name)]


def read_shard_keys(path: Path) -> tuple[ShardInfo, list[bytes]]:
    """Return a shard's manifest entry and its keys.

    Raises:
        FormatError: if it is damaged; the message names the remedy.
    """
    try:
        shard = Shard.open(path)
        return shard.info, shard.read_keys()
    except FormatError as error:
        raise FormatError(
            f"{error}; delete it and repeat the command, which generates only its images again"
        ) from error


def remove_temporaries(cache: Path, rank: int) -> None:
    """Remove temporary files that a killed writer left; the caller holds the lock of this rank."""
    for path in list_directory(cache):
        match = _SHARD_TEMPORARY.fullmatch(path.name)
        if match and int(match[1]) == rank:
            remove(path)


def _clean(cache: Path, manifest: Manifest) -> None:
    """Remove files that the new manifest replaces, except those of ranks that are still writing."""
    assert manifest.index is not None
    ranks = set()
    for path in list_directory(cache):
        replaced = INDEX_NAME.fullmatch(path.name) and path.name != manifest.index.file
        if replaced or _OTHER_TEMPORARY.fullmatch(path.name):
            remove(path)
        if match := _SHARD_TEMPORARY.fullmatch(path.name) or JOURNAL_NAME.fullmatch(path.name):
            ranks.add(int(match[1]))
    _clean_rank(cache, 0)
    for rank in ranks - {0}:
        lock = RankLock(cache, rank)
        with contextlib.suppress(LockedError):
            lock.acquire()
            try:
                _clean_rank(cache, rank)
            finally:
                lock.release()


def _clean_rank(cache: Path, rank: int) -> None:
    remove_temporaries(cache, rank)
    remove(cache / f"failures-r{rank:03d}.jsonl")
