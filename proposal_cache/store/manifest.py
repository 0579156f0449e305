"""Manifest of a cache: its dataset, its generators with all parameters, and its files."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from proposal_cache.errors import CacheError, FormatError, MismatchError, StorageError, abbreviate
from proposal_cache.store.columns import FORMAT_VERSION, check_version
from proposal_cache.store.durable import write_durably
from proposal_cache.store.format import INDEX_NAME, SHARD_NAME, check_key

MANIFEST = "manifest.json"

_FORMAT = "proposal_cache"
_MAX_BYTES = 256 << 20  # usually kilobytes; longer with millions of failures


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


_Info = TypeVar("_Info", ShardInfo, IndexInfo)


@dataclass(frozen=True)
class Manifest:
    """Content and origin of a cache.

    `Patches.source` is an index into `generators`: name, every parameter and SHA-256 of the weights of each.
    """

    dataset: str
    generators: tuple[dict[str, Any], ...]
    shards: tuple[ShardInfo, ...] = ()  # complete shards, sorted by name
    index: IndexInfo | None = None  # None before the first `finalize`
    failures: Mapping[str, str] = field(default_factory=dict)  # reason per key of each image that failed
    inputs: tuple[str, ...] = ()  # fingerprints of the caches it was merged from

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
                raise ValueError(f"it has {path.stat().st_size} bytes")
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
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise FormatError(f"{path} is not a manifest of a patch cache")
        check_version(path, content.get("version"))
        try:
            manifest = cls(
                dataset=_expect(content["dataset"], str),
                generators=as_generators(_expect(content["generators"], list)),
                shards=tuple(_entry(ShardInfo, shard, SHARD_NAME) for shard in _expect(content["shards"], list)),
                index=None if content["index"] is None else _entry(IndexInfo, content["index"], INDEX_NAME),
                failures={key: _expect(reason, str) for key, reason in _expect(content["failures"], dict).items()},
                inputs=tuple(_expect(digest, str) for digest in _expect(content.get("inputs", []), list)),
            )
            for key in manifest.failures:
                check_key(key)
        except (KeyError, TypeError, CacheError) as error:
            missing = " is missing" if isinstance(error, KeyError) else ""
            raise FormatError(f"{path} is damaged: {error}{missing}") from error
        return manifest

    def save(self, cache: Path, *, replace: bool = True) -> None:
        """Write the manifest to the directory of its cache, which keeps an existing one if `replace` is False."""
        head = {"format": _FORMAT, "version": FORMAT_VERSION, "images": self.images, "patches": self.patches}
        data = json.dumps(head | asdict(self), indent=1, allow_nan=False) + "\n"
        write_durably(cache / MANIFEST, data.encode(), replace=replace)

    def require(self, cache: Path, requested: "Manifest") -> None:
        """Raise MismatchError, naming each difference, if dataset, generators or inputs are not those requested.

        Inputs are compared if some are requested. The directory `cache` is for the message.
        """
        found: list[str] = []
        if requested.dataset != self.dataset:
            found.append(f"its dataset is {self.dataset!r}, not {requested.dataset!r}")
        names, others = ([g.get("name") for g in manifest.generators] for manifest in (self, requested))
        if len(names) == len(others):
            found += itertools.chain(*map(_differences, self.generators, requested.generators))
        else:
            found.append(f"its generators are {names}, not {others}")
        if requested.inputs and requested.inputs != self.inputs:
            found.append("it was not merged from these caches, or they have changed since")
        if found:
            raise MismatchError(
                f"{cache} does not match the request: {'; '.join(found)}. "
                "Change the request, or write to another directory"
            )


def as_generators(generators: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return descriptions of generators as JSON types; raise CacheError for others, and for NaN and infinity."""
    several = [generators] if isinstance(generators, Mapping) else list(generators)
    try:
        return tuple(_expect(json.loads(json.dumps(generator, allow_nan=False)), dict) for generator in several)
    except (TypeError, ValueError) as error:
        raise CacheError(f"a generator must be described by JSON values, not {generators!r}: {error}") from error


def _differences(cached: Any, asked: Any, name: str = "generator") -> list[str]:
    """Return a message per parameter in which two descriptions differ."""
    if isinstance(cached, dict) and isinstance(asked, dict):
        separator = " " if name == "generator" else "."
        return [
            difference
            for key in sorted(cached.keys() | asked.keys())
            for difference in _differences(cached.get(key), asked.get(key), f"{name}{separator}{key}")
        ]
    return [] if cached == asked else [f"its {name} is {cached!r}, not {asked!r}"]


def _entry(kind: type[_Info], content: Any, file_name: re.Pattern[str]) -> _Info:
    content = _expect(content, dict)
    entry = kind(**{field.name: _expect(content[field.name], field.type) for field in fields(kind)})
    if not file_name.fullmatch(entry.file):
        raise CacheError(f"{entry.file!r} is not the name of a file of a cache")
    return entry


def _expect(value: Any, kind: Any) -> Any:
    if type(value) is not kind or (kind is int and value < 0):
        raise TypeError(f"{abbreviate(value)} is not {'a count' if kind is int else f'of type {kind.__name__}'}")
    return value
