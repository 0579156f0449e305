"""Manifest of a cache: its dataset, its generators with all parameters, and its files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from proposal_cache.errors import CacheError, FormatError, MismatchError, StorageError, abbreviate
from proposal_cache.store.columns import FORMAT_VERSION
from proposal_cache.store.durable import write_durably
from proposal_cache.store.format import INDEX_NAME, SHARD_NAME, check_key

MANIFEST = "manifest.json"

_FORMAT = "proposal_cache"
_MAX_BYTES = 256 << 20  # usually kilobytes; longer with millions of failures

Generator = Mapping[str, Any]


@dataclass(frozen=True)
class ShardInfo:
    """Complete shard: file name, number of images and patches, size in bytes, checksum over all columns."""

    file: str
    images: int
    patches: int
    bytes: int
    checksum: str


@dataclass(frozen=True)
class IndexInfo:
    """Key index: file name, number of keys, checksum."""

    file: str
    images: int
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """Content and origin of a cache.

    Attributes:
        dataset: name of the dataset.
        generators: description of each generator (name, every parameter, SHA-256 of its weights); `Patches.source`
            is an index into it.
        shards: complete shards, sorted by name.
        index: key index; None before the first `finalize`.
        failures: reason per key of each image that failed.
        inputs: fingerprints of the caches it was merged from; empty if it is not a merged cache.
    """

    dataset: str
    generators: tuple[dict[str, Any], ...]
    shards: tuple[ShardInfo, ...] = ()
    index: IndexInfo | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        return self.index.images if self.index else 0

    @property
    def patches(self) -> int:
        return sum(shard.patches for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards in bytes."""
        return sum(shard.bytes for shard in self.shards)

    @classmethod
    def load(cls, cache: Path) -> "Manifest":
        """Load the manifest of the cache in a directory.

        Raises:
            CacheError: if there is no cache.
            FormatError: if the manifest is damaged, of another version, or names files outside the cache.
            StorageError: if it cannot be read.
        """
        path = cache / MANIFEST
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise FormatError(f"{path} is not a manifest: it has {path.stat().st_size} bytes")
            content = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            problem = f"has no {MANIFEST}" if cache.is_dir() else "does not exist"
            raise CacheError(
                f"{cache} is not a patch cache: it {problem}. "
                f"Generate one with `proposal-cache generate --output {cache}`, or correct the path"
            ) from error
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path} is damaged: {error}") from error
        return cls._from_json(path, content)

    def save(self, cache: Path) -> None:
        """Write the manifest to the directory of its cache, replacing the old one."""
        write_durably(cache / MANIFEST, _to_json(self))

    def create(self, cache: Path) -> None:
        """Write the first manifest; if another process has written one in the meantime, that one stays."""
        write_durably(cache / MANIFEST, _to_json(self), replace=False)

    def with_content(self, shards: Sequence[ShardInfo], index: IndexInfo, failures: Mapping[str, str]) -> "Manifest":
        """Return a copy with other content."""
        return replace(self, shards=tuple(shards), index=index, failures=dict(failures))

    def require(
        self,
        cache: Path,
        *,
        generators: Generator | Sequence[Generator] | None = None,
        dataset: str | None = None,
        inputs: Sequence[str] = (),
    ) -> None:
        """Raise MismatchError, naming each difference, if dataset or generators differ from those of the cache.

        Args:
            cache: directory of the cache, for the message.
            generators, dataset: expected values; None to accept any.
            inputs: expected fingerprints, compared if both sides have some.
        """
        found: list[str] = []
        if dataset is not None and dataset != self.dataset:
            found.append(f"its dataset is {self.dataset!r}, not {dataset!r}")
        if generators is not None:
            found += _differences(list(self.generators), as_generators(generators))
        if inputs and self.inputs and tuple(inputs) != self.inputs:
            found.append("the caches it was merged from have changed since")
        if found:
            raise MismatchError(
                f"{cache} does not match the request: {'; '.join(found)}. "
                "Change the request, or write to another directory"
            )

    @classmethod
    def _from_json(cls, path: Path, content: Any) -> "Manifest":
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise FormatError(f"{path} is not a manifest of a patch cache")
        if content.get("version") != FORMAT_VERSION:
            raise FormatError(
                f"{path} has format version {content.get('version')!r}, this program reads version {FORMAT_VERSION}: "
                "generate the cache again in another directory"
            )
        try:
            manifest = cls(
                dataset=_expect(content["dataset"], str),
                generators=tuple(as_generators(_expect(content["generators"], list))),
                shards=tuple(_shard_info(shard) for shard in _expect(content["shards"], list)),
                index=None if content["index"] is None else _index_info(content["index"]),
                failures={key: _expect(reason, str) for key, reason in _expect(content["failures"], dict).items()},
                inputs=tuple(_expect(digest, str) for digest in _expect(content.get("inputs", []), list)),
            )
            for key in manifest.failures:
                check_key(key)
            return manifest
        except KeyError as error:
            raise FormatError(f"{path} is damaged: {error} is missing") from error
        except (TypeError, CacheError) as error:
            raise FormatError(f"{path} is damaged: {error}") from error


def as_generators(generators: Generator | Sequence[Generator]) -> list[dict[str, Any]]:
    """Return a list of generator descriptions, converted to JSON types.

    Raises:
        CacheError: if a description contains values that JSON cannot represent, such as NaN and infinity.
    """
    several = [generators] if isinstance(generators, Mapping) else list(generators)
    try:
        return [_expect(json.loads(json.dumps(generator, allow_nan=False)), dict) for generator in several]
    except (TypeError, ValueError) as error:
        raise CacheError(f"a generator must be described by JSON values, not {generators!r}: {error}") from error


def _to_json(manifest: Manifest) -> bytes:
    content = {
        "format": _FORMAT,
        "version": FORMAT_VERSION,
        "dataset": manifest.dataset,
        "generators": list(manifest.generators),
        "images": manifest.images,
        "patches": manifest.patches,
        "index": asdict(manifest.index) if manifest.index else None,
        "shards": [asdict(shard) for shard in manifest.shards],
        "failures": dict(manifest.failures),
        "inputs": list(manifest.inputs),
    }
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _differences(cached: Any, asked: Any, name: str = "") -> list[str]:
    """Return a message per parameter in which two descriptions differ."""
    if isinstance(cached, list) and isinstance(asked, list) and not name:
        if len(cached) != len(asked):
            names = [[generator.get("name") for generator in side] for side in (cached, asked)]
            return [f"its generators are {names[0]}, not {names[1]}"]
        return [text for a, b in zip(cached, asked, strict=True) for text in _differences(a, b, "generator")]
    if isinstance(cached, dict) and isinstance(asked, dict):
        found = []
        for key in sorted(cached.keys() | asked.keys()):
            found += _differences(
                cached.get(key), asked.get(key), f"{name} {key}" if name == "generator" else f"{name}.{key}"
            )
        return found
    return [] if cached == asked else [f"its {name} is {cached!r}, not {asked!r}"]


def _shard_info(content: Any) -> ShardInfo:
    content = _expect(content, dict)
    file = _expect(content["file"], str)
    if not SHARD_NAME.fullmatch(file):
        raise CacheError(f"{file!r} is not the name of a shard")
    images, patches, size = (_count(content[name]) for name in ("images", "patches", "bytes"))
    return ShardInfo(file, images, patches, size, _expect(content["checksum"], str))


def _index_info(content: Any) -> IndexInfo:
    content = _expect(content, dict)
    file = _expect(content["file"], str)
    if not INDEX_NAME.fullmatch(file):
        raise CacheError(f"{file!r} is not the name of an index")
    return IndexInfo(file, _count(content["images"]), _expect(content["checksum"], str))


def _count(value: Any) -> int:
    if _expect(value, int) < 0 or isinstance(value, bool):
        raise CacheError(f"{value!r} is not a count")
    return value


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{abbreviate(value)} is not of type {kind.__name__}")
    return value
