"""Writer of a cache: durable, resumable, one per rank."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches
from proposal_cache.store.durable import make_directory, move_durably, remove
from proposal_cache.store.finalize import (
    finalize_existing,
    read_shard_keys,
    record_failure,
    remove_temporaries,
    shard_files,
)
from proposal_cache.store.format import MAX_IMAGES, SHARD_NAME, check_key, shard_name
from proposal_cache.store.lock import manifest_lock, rank_lock
from proposal_cache.store.manifest import MANIFEST, Manifest, as_generators
from proposal_cache.store.shard import Shard, ShardBuffer

STAGED = "staged"  # folder of shards that are not part of the cache yet

_MAX_SHARD_BYTES = 64 << 20  # compressed, in memory
_MAX_SHARD_SECONDS = 600.0  # after which a shard is written even if it is not full, to limit what a crash loses


class CacheWriter:
    """Context manager that adds images to a cache, which is created if it does not exist.

    Shards are written atomically: after a crash at most the images of the open shard are lost, and the same program
    run again adds only those. Closing writes the open shard, also after an exception, and finalizes the cache if this
    is the only rank. Several ranks may write concurrently, on any number of machines; after all have closed, one
    process calls `finalize`.

    >>> images = {"a": np.zeros((4, 6, 3), np.uint8), "b": np.ones((4, 6, 3), np.uint8)}
    >>> def generate(image):
    ...     return Patches.from_masks(image[None, ..., 0] > 0)
    >>> with CacheWriter("patches", {"name": "nonzero"}, dataset="photos") as writer:
    ...     for key, image in images.items():
    ...         if key not in writer.done:
    ...             writer.add(key, generate(image))
    >>> sorted(writer.done)
    ['a', 'b']

    Args:
        generator: description of the generator: name, every parameter, SHA-256 of weights; or a list of descriptions,
            into which `Patches.source` is an index.
        shard_size: maximum number of images per shard.
        rank, ranks: number of this writer, and number of all writers.
        inputs: fingerprints of the caches that the patches are copied from, if any.

    Attributes:
        done: keys in complete shards of all ranks when this writer was opened, and keys added since.

    Raises:
        MismatchError: if the directory contains a cache of another dataset, generator or inputs.
        LockedError: if another process writes to it as the same rank.
        FormatError: if it contains a damaged shard; delete the shard to generate its images again.
        StorageError: if the directory cannot be read or written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        generator: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        dataset: str,
        shard_size: int = 1000,
        *,
        rank: int = 0,
        ranks: int = 1,
        inputs: Sequence[str] = (),
    ) -> None:
        if not 1 <= shard_size <= MAX_IMAGES or not 0 <= rank < ranks:
            raise CacheError(
                f"shard_size {shard_size}, rank {rank} of {ranks}: "
                f"shard_size must be 1 to {MAX_IMAGES}, and rank 0 to ranks - 1"
            )
        self.path = Path(path)
        self.shard_size, self.rank, self.ranks = shard_size, rank, ranks
        self._buffer = ShardBuffer()
        self._opened_at = 0.0
        make_directory(self.path)
        with contextlib.ExitStack() as lock:
            requested = Manifest(dataset, as_generators(generator), inputs=tuple(inputs))
            with manifest_lock(self.path):  # `finalize` holds the locks of idle ranks
                lock.enter_context(rank_lock(self.path, rank))
                self._manifest = _open_manifest(self.path, requested)
            remove_temporaries(self.path, rank)
            shards = shard_files(self.path)
            self.done = {key.decode() for shard in shards for key in read_shard_keys(shard)[1]}
            own = [m for shard in shards if (m := SHARD_NAME.fullmatch(shard.name)) and int(m[1]) == rank]
            self._next = max((int(m[2]) for m in own), default=-1) + 1
            self._lock = lock.pop_all()

    def add(self, key: str, patches: Patches) -> None:
        """Add the patches of one image; its key is a relative path with `/`, without suffix.

        Raises:
            CacheError: if the key is a duplicate or unsafe, if boxes or areas do not match the masks, or if a source
                is not the index of a generator.
            StorageError: if the shard is full and cannot be written; it stays in memory, and `flush` tries again.
        """
        if key in self.done:
            raise CacheError(f"{self.path} already has patches of {key!r}")
        if not len(self._buffer):
            self._opened_at = time.monotonic()
        self._buffer.add(key, patches, len(self._manifest.generators))
        self.done.add(key)
        old = time.monotonic() - self._opened_at >= _MAX_SHARD_SECONDS
        if old or len(self._buffer) >= self.shard_size or self._buffer.nbytes >= _MAX_SHARD_BYTES:
            self.flush()

    def add_failure(self, key: str, reason: str) -> None:
        """Record a failed image for the manifest. It is not added to `done`, so that the next run retries it."""
        check_key(key)
        record_failure(self.path, self.rank, key, reason)

    def commit(self, staged: Path) -> None:
        """Move a shard written by `stage_shard` into the cache; images that are in the cache already are dropped."""
        keys = [key.decode() for key in read_shard_keys(staged)[1]]
        if len({*keys} - self.done) == len(keys):
            move_durably(staged, self.path / shard_name(self.rank, self._next))
            self._next += 1
            self.done.update(keys)
            return
        shard = Shard.open(staged, generators=len(self._manifest.generators))
        for row, key in enumerate(keys):
            if key not in self.done:
                self.add(key, shard.read(row))
        self.flush()
        remove(staged)

    def commit_staged(self) -> None:
        """Commit the shards that an interrupted run has staged, and remove those it has not completed.

        No other process may be staging.
        """
        for path in sorted((self.path / STAGED).glob("*.h5")):
            self.commit(path)
        for path in (self.path / STAGED).glob("*.h5.*.tmp"):
            remove(path)

    def flush(self) -> None:
        """Write the open shard now."""
        if len(self._buffer):
            self._buffer.write(self.path / shard_name(self.rank, self._next))
            self._next += 1
            self._buffer = ShardBuffer()

    def close(self) -> None:
        """Write the open shard, and finalize the cache if this is the only rank."""
        with self._lock:
            self.flush()
        if self.ranks == 1:
            finalize_existing(self.path)

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with contextlib.suppress(CacheError) if error else contextlib.nullcontext():  # the first error is raised
            self.close()


def stage_shard(
    cache: Path, images: Iterable[tuple[str, Patches]], generators: int
) -> tuple[Path | None, dict[str, CacheError]]:
    """Write a shard of a cache with this number of generators, for the process that writes it to `commit`.

    Returns:
        The file, None if there is no valid image; and the error of `CacheWriter.add` per key of an invalid image.
    """
    buffer, errors = ShardBuffer(), {}
    for key, patches in images:
        try:
            buffer.add(key, patches, generators)
        except CacheError as error:
            errors[key] = error
    if not len(buffer):
        return None, errors
    make_directory(cache / STAGED)
    path = cache / STAGED / f"{secrets.token_hex(8)}.h5"
    buffer.write(path)
    return path, errors


def _open_manifest(cache: Path, requested: Manifest) -> Manifest:
    """Return the manifest in the directory, which must match `requested`; create it if it does not exist."""
    if not (cache / MANIFEST).exists():
        stray = shard_files(cache)
        if stray:
            raise CacheError(f"{cache} has shards ({stray[0].name}, ...) but no {MANIFEST}: it is not a cache")
        requested.save(cache, replace=False)
    manifest = Manifest.load(cache)
    manifest.require(cache, requested)
    return manifest
