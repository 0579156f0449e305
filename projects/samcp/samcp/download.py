"""Model files from URLs, downloaded once into the user's cache."""

import hashlib
import secrets
import shutil
import sys
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from proposal_cache.errors import reason
from proposal_cache.store.durable import make_directory
from samcp.errors import CheckpointError
from samcp.user_cache import cache_folder

_HEADERS = {"User-Agent": "samcp"}  # some hosts reject Python's own
_PATIENCE = 60.0  # seconds without a byte


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
        CheckpointError: the file cannot be downloaded, or only a part of it, or cannot be written.
    """
    folder = cache_folder("models") / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / PurePosixPath(urlsplit(url).path).name
    if not path.is_file():
        try:
            make_directory(folder)
            _download(url, path)
        except (OSError, ValueError, HTTPException) as error:
            raise CheckpointError(
                f"{url}: cannot be downloaded ({reason(error)}); check the URL, or name a local file"
            ) from error
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        print(f"{path}\nsha256 {digest}", file=sys.stderr)
    return path


def _download(url: str, path: Path) -> None:
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with urlopen(Request(url, headers=_HEADERS), timeout=_PATIENCE) as response, partial.open("xb") as file:
            size = response.headers["Content-Length"]
            total = None if size is None else int(size)
            with tqdm.wrapattr(response, "read", total=total, unit="B", unit_scale=True, unit_divisor=1024) as body:
                shutil.copyfileobj(body, file)
            if total is not None and file.tell() != total:  # urllib ends without an error if a connection is closed
                raise OSError(f"only {file.tell()} of {total} bytes arrived")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
