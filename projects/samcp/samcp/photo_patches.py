"""Patches of photographs, made when they are needed and kept by the content of the image."""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from proposal_cache import PatchCache, Patches
from proposal_cache.errors import CacheError, LockedError
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import ImageError, ImageFile
from proposal_cache.generators.base import Generator
from samcp.user_cache import cache_folder


def photo_patches(images: Sequence[ImageFile], generator: Generator) -> dict[str, Patches | str]:
    """Return the patches of images; those made before, also of a copy under another name, are read from the cache.

    Args:
        images: files or URLs.
        generator: makes the patches that are missing, with a progress bar.

    Returns:
        key of the image -> its patches, or the message of the error that prevented them.

    Raises:
        CacheError: patches are missing and the cache cannot be written.
    """
    found: dict[str, Patches | str] = {}
    digests: dict[str, str] = {}
    for image in images:
        try:
            digests[image.key] = hashlib.sha256(image.fetch().data or b"").hexdigest()
        except ImageError as error:
            print(f"warning: skipped: {error}", file=sys.stderr)
            found[image.key] = str(error)
    folder = cache_folder("patches") / generator_hash(generator)
    unique = {digests[image.key]: image for image in images if image.key in digests}
    missing = _missing(folder, unique)
    if missing:
        _generate([replace(unique[digest], key=digest) for digest in missing], generator, folder)
    if unique:
        cache = PatchCache(folder)
        found |= {
            key: cache[digest] if digest in cache else cache.manifest.failures[digest]
            for key, digest in digests.items()
        }
    return found


def generator_hash(generator: Generator) -> str:
    """Return the name of a folder for the patches of a generator with its parameters and weights."""
    described = json.dumps(generator.describe(), sort_keys=True).encode()
    return hashlib.sha256(described).hexdigest()[:16]


def _missing(folder: Path, digests: Iterable[str]) -> list[str]:
    """Return the digests that a cache lacks; all if there is no complete cache yet."""
    try:
        return PatchCache(folder).missing(digests)
    except CacheError:
        return list(digests)


def _generate(images: Sequence[ImageFile], generator: Generator, folder: Path) -> None:
    try:
        generate(images, generator, folder, "photographs")
    except LockedError as error:
        raise LockedError(
            f"{folder} is being written by another process: wait for it to end, or set SAMCP_CACHE to another folder"
        ) from error
