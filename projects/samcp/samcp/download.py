"""Model files from URLs, downloaded once into the user's cache."""

import hashlib
import os
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch

from proposal_cache.errors import reason
from samcp.errors import CheckpointError
from samcp.user_cache import cache_folder


def is_url(name: str) -> bool:
    """Return whether a name is a URL that :func:`fetch` can download.

    >>> is_url("https://example.org/model.pth"), is_url("model.pth")
    (True, False)
    """
    return urlsplit(name).scheme in ("http", "https", "file")


def fetch(url: str) -> Path:
    """Return the local copy of a file, which is downloaded with a progress bar if there is none.

    The path and the SHA-256 of a new copy are printed on standard error, to be compared with those of the publisher.

    Raises:
        CheckpointError: the file cannot be downloaded.
    """
    folder = cache_folder("models") / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / PurePosixPath(urlsplit(url).path).name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, os.fspath(path))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{url}: cannot be downloaded ({reason(error)}); check the URL, or name a local file"
            ) from error
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        print(f"{path}\nsha256 {digest}", file=sys.stderr)
    return path
