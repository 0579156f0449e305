"""Reader of a cache."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from proposal_cache.errors import CacheError, FormatError, MissingKeyError, StorageError
from proposal_cache.patches import Patches
from proposal_cache.store.index import KeyIndex
from proposal_cache.store.manifest import MANIFEST, Manifest
from proposal_cache.store.shard import Shard

_MAX_DESCRIPTORS = 128  # of open shards per cache; the usual limit per process is 1024
MISSING_SHARD = (
    "copy it there again, or repeat the command that generated the cache, which makes only the missing patches"
)
MISSING_INDEX = "`proposal-cache finalize` writes a new one"


class PatchCache(Mapping[str, Patches]):
    """Read-only mapping from image key to `Patches`; keys are sorted.

    Opening reads the manifest and the key index. A shard is opened when one of its images is first read; each image
    then takes two reads. May be used from several threads, after a fork, and pickled (the copy opens the cache again).

    >>> with CacheWriter("patches", {"name": "example"}, dataset="photos") as writer:
    ...     writer.add("train/0001", Patches.from_masks(np.ones((1, 4, 6), dtype=bool)))
    >>> cache = PatchCache("patches")
    >>> list(cache), cache["train/0001"].areas
    (['train/0001'], array([24]))
    >>> cache.missing(["train/0001", "train/0002"])
    ['train/0002']

    Raises:
        CacheError: if there is no cache, or it was never finalized.
        FormatError: if the manifest or the index is damaged or of another version.
        StorageError: if they cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest, self._index = _open(self.path)
        self._shards: dict[int, Shard] = {}
        self._open: dict[int, None] = {}  # shards with an open file, oldest first

    def __getitem__(self, key: str) -> Patches:
        """Read the patches of one image.

        Raises:
            MissingKeyError: if the image is not in the cache; the message names the reason if it failed.
            FormatError: if its shard is damaged.
            StorageError: if its shard cannot be read.
        """
        shard, row = self._find(key)
        with naming_fix(shard.file.path, MISSING_SHARD):
            return shard.read(row)

    def image_size(self, key: str) -> tuple[int, int]:
        """Return height and width of an image without reading its patches; errors as for its patches."""
        shard, row = self._find(key)
        return shard.image_size(row)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._index.find(_encoded(key)) is not None

    def __iter__(self) -> Iterator[str]:
        return (key.decode() for key in self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __eq__(self, other: object) -> bool:
        return self is other  # Mapping would compare all patches

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"PatchCache({str(self.path)!r}): {len(self)} images of {self.manifest.dataset}"

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys that are not in the cache, in their order."""
        return [key for key in keys if key not in self]

    def __reduce__(self) -> tuple[type["PatchCache"], tuple[Path]]:
        return PatchCache, (self.path,)

    def _find(self, key: str) -> tuple[Shard, int]:
        encoded = _encoded(key)
        position = self._index.find(encoded)
        if position is None:
            message, reason = f"{self.path} has no patches of {key!r}", self.manifest.failures.get(key)
            if reason is not None:
                raise MissingKeyError(f"{message}: its generation failed ({reason})")
            raise MissingKeyError(
                f"{message} among its {len(self)} images of {self.manifest.dataset}: "
                "run the generator again to add them, or open the cache of this dataset"
            )
        number, row = position
        return self._shard(number, row, encoded), row

    def _shard(self, number: int, row: int, key: bytes) -> Shard:
        """Return a shard with a row; when it is opened, check that the index and the manifest belong together."""
        shard = self._shards.get(number)
        if shard is None:
            if number >= len(self.manifest.shards):
                raise FormatError(
                    f"{self.path / MANIFEST} is damaged: the index points to shard {number}, which it does not list"
                )
            info = self.manifest.shards[number]
            path = self.path / info.file
            with naming_fix(path, MISSING_SHARD):
                shard = Shard.open(path, info, len(self.manifest.generators))
            if row < len(shard) and shard.read_keys()[row] != key:
                raise FormatError(
                    f"{self.path} is damaged: its index is not of the shards in its manifest ({key.decode()!r} is not "
                    f"in row {row} of {info.file}); `proposal-cache finalize` writes a new index"
                )
            self._shards[number] = shard
        if row >= len(shard):
            raise FormatError(
                f"{self.path / MANIFEST} is damaged: the index points to row {row} of {shard.info.file}, which has "
                f"{len(shard)}"
            )
        if number not in self._open:
            self._open[number] = None
            for old in list(self._open)[: max(0, len(self._open) - _MAX_DESCRIPTORS)]:
                self._open.pop(old, None)
                self._shards[old].file.close()
        return shard


def _open(cache: Path) -> tuple[Manifest, KeyIndex]:
    """Return the manifest and its index, which `finalize` may replace at any time."""
    manifest = Manifest.load(cache)
    while True:
        if manifest.index is None:
            raise CacheError(f"{cache} was never finished: repeat the command that generated it, which continues")
        try:
            with naming_fix(cache / manifest.index.file, MISSING_INDEX):
                return manifest, KeyIndex.open(cache, manifest.index)
        except CacheError:
            newer = Manifest.load(cache)
            if newer.index == manifest.index:
                raise
            manifest = newer


@contextlib.contextmanager
def naming_fix(file: Path, remedy: str) -> Iterator[None]:
    """Add the remedy to the StorageError of a file that the manifest names and that is missing."""
    try:
        yield
    except StorageError as error:
        if file.exists():
            raise
        raise StorageError(f"{error}, but {MANIFEST} names it; {remedy}") from error


def _encoded(key: str) -> bytes:
    return key.encode(errors="surrogatepass")  # no cache contains a key with surrogates
