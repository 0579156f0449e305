"""Writer of a cache: durable, resumable, one per rank."""

import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from proposal_cache import rle
from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches
from proposal_cache.store.durable import list_directory, make_directory, move_durably, remove
from proposal_cache.store.failures import record_failure
from proposal_cache.store.finalize import finalize_locked, read_shard_keys, remove_temporaries, shard_files
from proposal_cache.store.format import MAX_IMAGES, SHARD_NAME, check_key, shard_name
from proposal_cache.store.lock import RankLock
from proposal_cache.store.manifest import MANIFEST, Manifest, as_generators
from proposal_cache.store.shard import Shard, ShardBuffer

STAGED = "staged"  # folder of shards that are not part of the cache yet

_MAX_SHARD_BYTES = 64 << 20  # compressed, in memory


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
        path: directory of the cache.
        generator: description of the generator: name, every parameter, SHA-256 of weights; or a list of descriptions,
            into which `Patches.source` is an index.
        dataset: name of the dataset.
        shard_size: maximum number of images per shard.
        shard_seconds: age at which a shard is written even if it is not full, to limit what a crash loses.
        rank, ranks: number of this writer, and number of all writers.
        inputs: fingerprints of the caches that the patches are copied from, if any.

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
        shard_seconds: float = 600.0,
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
        self.shard_size, self.shard_seconds = shard_size, shard_seconds
        self.rank, self.ranks = rank, ranks
        self._buffer = ShardBuffer()
        self._opened_at = 0.0
        self._lock = RankLock(self.path, rank)
        make_directory(self.path)
        self._lock.acquire()
        try:
            requested = Manifest(dataset, tuple(as_generators(generator)), inputs=tuple(inputs))
            self._manifest = _open_manifest(self.path, requested)
            remove_temporaries(self.path, rank)
            self._done = {key.decode() for file in shard_files(self.path) for key in read_shard_keys(file)[1]}
            self._next = _next_number(self.path, rank)
        except BaseException:
            self._lock.release()
            raise

    @property
    def done(self) -> set[str]:
        """Keys in complete shards of all ranks when this writer was opened, and keys added since."""
        return self._done

    def add(self, key: str, patches: Patches) -> None:
        """Add the patches of one image.

        Args:
            key: relative path of the image with `/`, without suffix.
            patches: of the image.

        Raises:
            CacheError: if the key is a duplicate or unsafe, if boxes or areas do not match the masks, or if a source
                is not the index of a generator.
            StorageError: if the shard is full and cannot be written; it stays in memory, and `flush` tries again.
        """
        check_key(key)
        if key in self._done:
            raise CacheError(f"{self.path} already has patches of {key!r}")
        _check_patches(key, patches, len(self._manifest.generators))
        if not self._buffer.keys:
            self._opened_at = time.monotonic()
        self._buffer.add(key, patches)
        self._done.add(key)
        old = time.monotonic() - self._opened_at >= self.shard_seconds
        if old or len(self._buffer) >= self.shard_size or self._buffer.nbytes >= _MAX_SHARD_BYTES:
            self.flush()

    def add_failure(self, key: str, reason: str) -> None:
        """Record a failed image for the manifest. It is not added to `done`, so that the next run retries it."""
        check_key(key)
        record_failure(self.path, self.rank, key, reason)

    def commit(self, staged: Path) -> None:
        """Move a shard written by `stage_shard` into the cache; images that are in the cache already are dropped.

        Raises:
            FormatError: if the shard is damaged.
            StorageError: if the disk is full or gone.
        """
        keys = [key.decode() for key in read_shard_keys(staged)[1]]
        new = set(keys) - self._done
        if len(new) == len(keys):
            move_durably(staged, self.path / shard_name(self.rank, self._next))
            self._next += 1
            self._done |= new
            return
        shard = Shard.open(staged, generators=len(self._manifest.generators))
        for row, key in enumerate(keys):
            if key not in self._done:
                self.add(key, shard.read(row))
        self.flush()
        remove(staged)

    def commit_staged(self) -> None:
        """Commit the shards that an interrupted run has staged and not moved into the cache."""
        folder = self.path / STAGED
        for path in list_directory(folder) if folder.is_dir() else []:
            if path.suffix == ".h5":
                self.commit(path)

    def flush(self) -> None:
        """Write the open shard now."""
        if len(self._buffer):
            self._buffer.write(self.path / shard_name(self.rank, self._next))
            self._next += 1
            self._buffer = ShardBuffer()

    def close(self) -> None:
        """Write the open shard, and finalize the cache if this is the only rank."""
        try:
            self.flush()
            if self.ranks == 1:
                self._manifest = finalize_locked(self.path, self._manifest)
        finally:
            self._lock.release()

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CacheError:
            if error is None:  # otherwise the first error is raised
                raise


def stage_shard(cache: Path, images: Iterable[tuple[str, Patches]], generators: int) -> Path:
    """Write a shard beside a cache that another process is writing, which then passes it to `CacheWriter.commit`.

    Args:
        cache: directory of the cache.
        images: key and patches of each image.
        generators: number of generators in the cache's manifest.

    Returns:
        Path of the shard.

    Raises:
        CacheError: if a key or patches are invalid, as in `CacheWriter.add`.
        StorageError: if the disk is full or gone.
    """
    buffer = ShardBuffer()
    for key, patches in images:
        check_key(key)
        _check_patches(key, patches, generators)
        buffer.add(key, patches)
    make_directory(cache / STAGED)
    path = cache / STAGED / f"{secrets.token_hex(8)}.h5"
    buffer.write(path)
    return path


def _open_manifest(cache: Path, requested: Manifest) -> Manifest:
    """Return the manifest in the directory, which must match `requested`; create it if it does not exist."""
    if not (cache / MANIFEST).exists():
        stray = shard_files(cache)
        if stray:
            raise CacheError(f"{cache} has shards ({stray[0].name}, ...) but no {MANIFEST}: it is not a cache")
        requested.create(cache)
    manifest = Manifest.load(cache)
    manifest.require(cache, generators=requested.generators, dataset=requested.dataset, inputs=requested.inputs)
    return manifest


def _next_number(cache: Path, rank: int) -> int:
    matches = [SHARD_NAME.fullmatch(file.name) for file in shard_files(cache)]
    return max((int(m[2]) for m in matches if m and int(m[1]) == rank), default=-1) + 1


def _check_patches(key: str, patches: Patches, generators: int) -> None:
    areas, boxes = rle.area_and_box(patches.rles, patches.height, patches.width)
    if not (np.array_equal(areas, patches.areas) and np.array_equal(boxes, patches.boxes)):
        raise CacheError(f"the boxes or areas of the patches of {key!r} do not match their masks")
    if patches.source.max(initial=0) >= generators:
        raise CacheError(
            f"a patch of {key!r} has source {patches.source.max()}, but the cache has {generators} generators, "
            "counted from 0: pass the description of every generator to the writer"
        )
