"""Joining: from the complete shards of all ranks to one manifest and one key index."""

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
    """Makes what all ranks have written readable as one cache.

    To be called once every rank has closed its writer; a writer that is alone does it when it closes. Calling it again,
    or after a crash, does no harm: the old manifest holds until the new one is complete.

    Raises:
        LockedError: while rank 0 is still writing.
        FormatError: where a shard is damaged.
        StorageError: where the disk is full or gone.
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
    """`finalize`, for the one who holds the lock of rank 0."""
    shards: list[ShardInfo] = []
    keys: list[list[bytes]] = []
    for path in shard_files(cache):
        info, shard_keys = read_shard_keys(path)
        shards.append(info)
        keys.append(shard_keys)
    done = {key for some in keys for key in some}
    failures = {**manifest.failures, **read_failures(cache)}
    failures = {key: reason for key, reason in sorted(failures.items()) if key.encode() not in done}
    manifest = manifest.with_content(shards, write_index(cache, keys), failures)
    manifest.save(cache)
    _clean(cache, manifest)
    return manifest


def shard_files(cache: Path) -> list[Path]:
    """The complete shards in a directory, by name."""
    return [path for path in list_directory(cache) if SHARD_NAME.fullmatch(path.name)]


def read_shard_keys(path: Path) -> tuple[ShardInfo, list[bytes]]:
    """The manifest's entry for a shard, and its keys.

    Raises:
        FormatError: where it is damaged, with the way out.
    """
    try:
        shard = Shard.open(path)
        return shard.info, shard.read_keys()
    except FormatError as error:
        raise FormatError(f"{error}; delete it and repeat the command, which makes just its images anew") from error


def remove_temporaries(cache: Path, rank: int) -> None:
    """Removes what a killed writer of this rank has left half written; for the one who holds the rank's lock."""
    for path in list_directory(cache):
        match = _SHARD_TEMPORARY.fullmatch(path.name)
        if match and int(match[1]) == rank:
            remove(path)


def _clean(cache: Path, manifest: Manifest) -> None:
    """Removes what the new manifest makes superfluous, except what belongs to a rank that is still writing."""
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
