"""Patches of photographs, made when they are needed and kept by the content of the image."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from proposal_cache import PatchCache, Patches
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
    """
    found: dict[str, Patches | str] = {}
    read: dict[str, ImageFile] = {}
    for image in images:
        try:
            read[image.key] = image.fetch()
        except ImageError as error:
            found[image.key] = str(error)
    digests = {key: hashlib.sha256(image.data or b"").hexdigest() for key, image in read.items()}
    described = json.dumps(generator.describe(), sort_keys=True).encode()
    folder = cache_folder("patches") / hashlib.sha256(described).hexdigest()[:16]
    unique = {digest: replace(read[key], key=digest) for key, digest in digests.items()}
    if unique:
        generate(list(unique.values()), generator, folder, "photographs")
        cache = PatchCache(folder)
        found |= {
            key: cache[digest] if digest in cache else cache.manifest.failures[digest]
            for key, digest in digests.items()
        }
    return found
