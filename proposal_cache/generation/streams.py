"""Images read as streams: URLs of any fsspec file system, and tar shards in webdataset layout."""

import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError
from proposal_cache.generation.sources import (
    SUFFIXES,
    Box,
    ImageError,
    ImageFile,
    SourceError,
    from_folder,
    from_list,
    image_key,
    read_image,
)
from proposal_cache.store.format import check_key

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class EncodedImage:
    """Image at a URL, or in memory as the content of its file.

    Attributes:
        key: of the image in the cache.
        url: where it is, or was read from.
        boxes: as in `ImageFile`.
        data: content of the file; None to fetch it from the URL.
    """

    key: str
    url: str
    boxes: tuple[Box, ...] = ()
    data: bytes | None = None

    def read(self) -> NDArray[np.uint8]:
        """Return the pixels; see `read_image`."""
        return read_image(self.url, self.fetch().data)

    def fetch(self) -> "EncodedImage":
        """Return the image with its data.

        Raises:
            ImageError: if the URL cannot be read.
        """
        if self.data is not None:
            return self
        try:
            with _open(self.url) as file:
                return replace(self, data=file.read())
        except Exception as error:  # each file system has its own exceptions
            raise ImageError(f"{self.url} cannot be read: {str(error) or type(error).__name__}") from error


@dataclass(frozen=True)
class TarShard:
    """Tar file in webdataset layout, local or at a URL: the members of one sample have the same name up to a dot."""

    url: str

    def members(self, suffixes: Collection[str]) -> Iterator[tuple[str, str, bytes]]:
        """Yield sample key, suffix and content of all members with one of the suffixes, reading the tar once.

        >>> from proposal_cache.generation.streams import TarShard
        >>> for key, suffix, content in TarShard("shard-000.tar").members({".jpg"}):  # doctest: +SKIP
        ...     print(key, len(content))

        Raises:
            SourceError: if the tar file cannot be read to its end.
        """
        try:
            with _open(self.url) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    stem, _, extension = path.name.partition(".")
                    suffix = f".{extension.lower()}"
                    if stem and suffix in suffixes and (content := tar.extractfile(member)):
                        yield str(path.with_name(stem)), suffix, content.read()
                # tarfile stops without an error if the rest of a member or of a header is missing.
                if tar.fileobj.tell() - tar.offset not in (0, tarfile.BLOCKSIZE):
                    raise EOFError("the file is truncated")
        except Exception as error:  # tarfile's, the decompressor's or the file system's
            raise SourceError(f"{self.url} cannot be read: {str(error) or type(error).__name__}") from error


SourceImage: TypeAlias = ImageFile | EncodedImage
Source: TypeAlias = SourceImage | TarShard


def find_sources(location: str) -> list[ImageFile] | list[EncodedImage] | list[TarShard]:
    """Return the images or tar shards at a location.

    Args:
        location: a folder; the URL of a folder; or the path or URL of tar files, where `{000..099}`, `{a,b}`, `*` and
            `?` name several.

    Raises:
        SourceError: if there are no images or tar files, or the location cannot be listed.
    """
    if not location.endswith(_TAR_SUFFIXES):
        return _list_url(location) if "://" in location else from_folder(location)
    urls = [url for name in expand_braces(location) for url in _expand_glob(name)]
    if not urls:
        raise SourceError(f"no tar files match {location}")
    return [TarShard(url) for url in urls]


def read_sources(sources: Iterable[Source], skip: Callable[[str], bool]) -> Iterator[SourceImage | SourceError]:
    """Yield the images of all sources, in order, and a SourceError for each tar file or member that cannot be read.

    Args:
        sources: images and tar shards.
        skip: returns True for the key of an image in a tar shard that is not needed.
    """
    seen: set[str] = set()
    for source in sources:
        if not isinstance(source, TarShard):
            yield source
            continue
        try:
            for key, suffix, data in source.members(SUFFIXES):
                url = f"{source.url}/{key}{suffix}"
                if key in seen:
                    yield SourceError(f"{url}: another image has the key {key!r}; keys must be unique over all shards")
                elif not skip(key):
                    yield _tar_image(key, url, data)
                seen.add(key)
        except SourceError as error:
            yield error


def expand_braces(text: str) -> list[str]:
    """Expand `{000..099}` and `{a,b}`.

    >>> expand_braces("shard-{08..11}.tar")
    ['shard-08.tar', 'shard-09.tar', 'shard-10.tar', 'shard-11.tar']
    """
    braces = _BRACES.search(text)
    if not braces:
        return [text]
    numbers = _RANGE.fullmatch(braces[1])
    if numbers:
        first, last = numbers.groups()
        options = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        options = braces[1].split(",")
    rest = expand_braces(text[braces.end() :])
    return [text[: braces.start()] + option + end for option in options for end in rest]


def _tar_image(key: str, url: str, data: bytes) -> EncodedImage | SourceError:
    try:
        check_key(key)
    except CacheError as error:
        return SourceError(f"{url}: {error}")
    return EncodedImage(key, url, data=data)


def _expand_glob(url: str) -> list[str]:
    if not any(character in url for character in "*?"):
        return [url]
    file_system, path = _file_system(url)
    try:
        found = sorted(file_system.glob(path))
    except Exception as error:
        raise SourceError(f"{url} cannot be listed: {str(error) or type(error).__name__}") from error
    return [file_system.unstrip_protocol(name) for name in found]


def _list_url(url: str) -> list[EncodedImage]:
    file_system, root = _file_system(url)
    try:
        found = sorted(file_system.find(root))
    except Exception as error:
        raise SourceError(f"{url} cannot be listed: {str(error) or type(error).__name__}") from error
    paths = [path for path in found if Path(path).suffix.lower() in SUFFIXES]
    if not paths:
        raise SourceError(f"no images in {url} (supported: {', '.join(sorted(SUFFIXES))})")
    urls = {image_key(path, root): file_system.unstrip_protocol(path) for path in paths}
    images = from_list(((image_key(path, root), path) for path in paths), url)  # which validates the keys
    return [EncodedImage(image.key, urls[image.key]) for image in images]


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # the protocol is unknown, or its package is not installed
        raise SourceError(f"{url} cannot be read: {error}") from error


def _open(url: str) -> Any:
    import fsspec  # a third of a second

    return fsspec.open(url, "rb")
