"""Images read as streams: URLs of any fsspec file system, and tar shards in webdataset layout."""

import sys
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from proposal_cache.errors import CacheError, reason
from proposal_cache.generation.sources import (
    SUFFIXES,
    ImageFile,
    SourceError,
    from_folder,
    from_list,
    image_key,
    open_url,
)
from proposal_cache.store.format import check_key

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class TarShard:
    """Tar file in webdataset layout, local or at a URL: the members of one sample have the same name up to a dot."""

    url: str

    def members(self, suffixes: Collection[str]) -> Iterator[tuple[str, str, bytes]]:
        """Yield sample key, suffix and content of members with the suffixes; raise SourceError if it is damaged."""
        try:
            with open_url(self.url) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    stem, _, extension = path.name.partition(".")
                    suffix = sys.intern(f".{extension.lower()}")  # `read_sources` remembers it per image
                    if stem and suffix in suffixes and (content := tar.extractfile(member)):
                        yield str(path.with_name(stem)), suffix, content.read()
                # tarfile stops without an error if the rest of a member or of a header is missing.
                if tar.fileobj.tell() - tar.offset not in (0, tarfile.BLOCKSIZE):
                    raise EOFError("the file is truncated")
        except Exception as error:  # tarfile's, the decompressor's or the file system's
            raise SourceError(f"{self.url} cannot be read: {reason(error)}") from error


Source: TypeAlias = ImageFile | TarShard


def find_sources(location: str) -> list[ImageFile] | list[TarShard]:
    """Return the images of a folder or its URL, or the tar shards at a path or URL.

    `{000..099}`, `{a,b}`, `*` and `?` name several tar shards.
    """
    if not location.endswith(_TAR_SUFFIXES):
        return _list_url(location) if "://" in location else from_folder(location)
    from braceexpand import braceexpand

    try:
        patterns = list(braceexpand(location, escape=False))
    except ValueError as error:
        raise SourceError(f"{location}: {error}") from error
    urls = [url for name in patterns for url in (_list(name, "glob")[1] if {*name} & {*"*?"} else [name])]
    if not urls:
        raise SourceError(f"no tar files match {location}")
    return [TarShard(url) for url in urls]


def read_sources(
    sources: Iterable[Source], skip: Callable[[str], bool], seen: dict[str, str] | None = None
) -> Iterator[ImageFile | SourceError]:
    """Yield the images of all sources, in order, and a SourceError for each tar file or member that cannot be read.

    Args:
        skip: returns True for the key of an image in a tar shard that is not needed.
        seen: key -> suffix of the images found in tar shards, skipped ones included; is updated.
    """
    seen = {} if seen is None else seen
    for source in sources:
        if not isinstance(source, TarShard):
            yield source
            continue
        empty = True
        try:
            for key, suffix, data in source.members(SUFFIXES):
                empty = False
                if key in seen:
                    yield duplicate(source.url, key, suffix)
                elif not skip(key):
                    yield _tar_image(key, f"{source.url}/{key}{suffix}", data)
                seen[key] = suffix
            if empty:
                raise SourceError(
                    f"{source.url} has no images (supported: {', '.join(sorted(SUFFIXES))}; the suffix of a member is "
                    "all after the first dot of its name)"
                )
        except SourceError as error:
            yield error


def duplicate(shard: str, key: str, suffix: str) -> SourceError:
    """Return the error for an image of a tar shard whose key occurred before."""
    return SourceError(f"{shard}/{key}{suffix}: another image has the key {key!r}; keys must be unique over all shards")


def _tar_image(key: str, url: str, data: bytes) -> ImageFile | SourceError:
    try:
        check_key(key)
    except CacheError as error:
        return SourceError(f"{url}: {error}")
    return ImageFile(key, url, data=data)


def _list_url(url: str) -> list[ImageFile]:
    root, urls = _list(url, "find")
    images = [(image_key(image, root), image) for image in urls if Path(image).suffix.lower() in SUFFIXES]
    if not images:
        raise SourceError(f"no images in {url} (supported: {', '.join(sorted(SUFFIXES))})")
    return from_list(images, url)


def _list(url: str, method: str) -> tuple[str, list[str]]:
    """Return a URL and those that a method of its fsspec file system finds there, sorted, in the same spelling."""
    import fsspec

    try:
        file_system, path = fsspec.core.url_to_fs(url)
        found = sorted(getattr(file_system, method)(path))
    except Exception as error:  # an unknown protocol, a package that is not installed, or the file system's own
        raise SourceError(f"{url} cannot be listed: {reason(error)}") from error
    return file_system.unstrip_protocol(path), [file_system.unstrip_protocol(name) for name in found]
