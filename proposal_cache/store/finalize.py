"""Finalization of a cache: one manifest and one key index over the complete shards of all ranks."""

import contextlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

from proposal_cache.errors import FormatError, LockedError
from proposal_cache.store.durable import append_durably, list_directory, remove, storage_errors
from proposal_cache.store.format import INDEX_NAME, SHARD_NAME, check_key
from proposal_cache.store.index import write_index
from proposal_cache.store.lock import manifest_lock, rank_lock
from proposal_cache.store.manifest import Manifest, ShardInfo
from proposal_cache.store.shard import Shard

_SHARD_TEMPORARY = re.compile(rf"{SHARD_NAME.pattern}\.[0-9a-f]+\.tmp")
_JOURNAL = re.compile(r"failures-r(\d{3,6})\.jsonl")
_REPLACED = re.compile(rf"manifest\.json\.[0-9a-f]+\.tmp|{INDEX_NAME.pattern}(\.[0-9a-f]+\.tmp)?")


def finalize(path: str | os.PathLike[str]) -> Manifest:
    """Make the shards of all ranks readable as one cache.

    Call it after every rank has closed its writer; a writer that is the only rank calls it itself. It may be repeated,
    also after a crash: the old manifest stays valid until the new one is complete. While ranks are writing, it makes
    their complete shards readable.

    Raises:
        LockedError: if another process has been doing the same for ten minutes.
        FormatError: if a shard is damaged.
        StorageError: if the directory cannot be read or written.
    """
    cache = Path(path)
    Manifest.load(cache)  # before a lock file is created in a directory that is not a cache
    return finalize_existing(cache)


def finalize_existing(cache: Path) -> Manifest:
    """Finalize a directory that is a cache, or was one before its mount was lost; raises the errors of `finalize`."""
    # Ranks that start meanwhile wait for the same lock, so that a rank that is idle now stays idle.
    with manifest_lock(cache), contextlib.ExitStack() as locks:
        idle = [rank for rank in _ranks_with_leftovers(cache) if _try_lock(locks, cache, rank)]
        manifest = Manifest.load(cache)
        shards = [read_shard_keys(path) for path in shard_files(cache)]
        done = {key for _, keys in shards for key in keys}
        failures = {**manifest.failures, **read_failures(cache)}
        failures = {key: reason for key, reason in sorted(failures.items()) if key.encode() not in done}
        index = write_index(cache, [keys for _, keys in shards])
        manifest = replace(manifest, shards=tuple(info for info, _ in shards), index=index, failures=failures)
        manifest.save(cache)
        for path in list_directory(cache):
            if _REPLACED.fullmatch(path.name) and path.name != index.file:
                remove(path)
        for rank in idle:
            remove_temporaries(cache, rank)
            remove(_journal(cache, rank))
        return manifest


def record_failure(cache: Path, rank: int, key: str, reason: str) -> None:
    """Append a failed image to the rank's journal, which `finalize` copies to the manifest."""
    # The leading newline ends a line that a crash may have left incomplete.
    line = "\n" + json.dumps({"key": key, "reason": reason}) + "\n"
    append_durably(_journal(cache, rank), line.encode())


def read_failures(cache: Path) -> dict[str, str]:
    """Return the last reason per key from all journals; incomplete and invalid lines are skipped."""
    failures = {}
    for path in list_directory(cache):
        if _JOURNAL.fullmatch(path.name):
            with storage_errors(f"{path} cannot be read"):
                lines = path.read_bytes().splitlines()
            for line in lines:
                with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                    entry = json.loads(line)
                    check_key(entry["key"])
                    failures[entry["key"]] = str(entry["reason"])
    return failures


def shard_files(cache: Path) -> list[Path]:
    """Return the complete shards in a directory, sorted by name."""
    return [path for path in list_directory(cache) if SHARD_NAME.fullmatch(path.name)]


def read_shard_keys(path: Path) -> tuple[ShardInfo, list[bytes]]:
    """Return a shard's manifest entry and its keys; raise FormatError, which names the remedy, if it is damaged."""
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
        if (match := _SHARD_TEMPORARY.fullmatch(path.name)) and int(match[1]) == rank:
            remove(path)


def _ranks_with_leftovers(cache: Path) -> set[int]:
    """Return the ranks with a journal, which are to be copied to the manifest, or temporary files."""
    found = (_SHARD_TEMPORARY.fullmatch(path.name) or _JOURNAL.fullmatch(path.name) for path in list_directory(cache))
    return {int(match[1]) for match in found if match}


def _try_lock(locks: contextlib.ExitStack, cache: Path, rank: int) -> bool:
    """Hold the lock of a rank until the stack is closed; return False if the rank is writing."""
    try:
        locks.enter_context(rank_lock(cache, rank))
    except LockedError:
        return False
    return True


def _journal(cache: Path, rank: int) -> Path:
    return cache / f"failures-r{rank:03d}.jsonl"
