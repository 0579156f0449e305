"""Durable file operations: atomic writes, appends, and directory access.

All raise StorageError, which names the path, if the operating system reports an error.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from proposal_cache.errors import StorageError

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # file systems such as exFAT


@contextlib.contextmanager
def storage_errors(problem: str, hint: str = "") -> Iterator[None]:
    """Raise an OSError of the block as StorageError: the problem, the system's message, the hint."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{problem}: {error.strerror}{hint}") from error


@contextlib.contextmanager
def atomic_file(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; on success, fsync it and rename it to `path`.

    The file is complete under its final name, even after a power failure, or absent. If the block raises, nothing is
    left behind.

    Args:
        path: final name; its directory must exist.
        replace: overwrite an existing file. If False, an existing file stays, and of several processes that write the
            same file concurrently exactly one succeeds.
    """
    # A random suffix, not the process number: processes in different containers may have the same number.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    with storage_errors(f"{path} cannot be written", "; what was complete before is kept"):
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(temporary, path)
            else:
                _rename_if_absent(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        sync_directory(path.parent)


def write_durably(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a whole file with `atomic_file`."""
    with atomic_file(path, replace=replace) as file:
        file.write(data)


def append_durably(path: Path, data: bytes) -> None:
    """Append to a file, created if missing, and fsync it. A crash may leave only part of `data`."""
    with storage_errors(f"{path} cannot be written"), open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def list_directory(path: Path) -> list[Path]:
    """Return the entries of a directory, sorted."""
    with storage_errors(f"{path} cannot be read"):
        return sorted(path.iterdir())


def make_directory(path: Path) -> None:
    """Create a directory and its parents durably, unless it exists."""
    with storage_errors(f"{path} cannot be created"):
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            sync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a file if it exists."""
    with storage_errors(f"{path} cannot be removed"):
        path.unlink(missing_ok=True)


def move_durably(path: Path, target: Path) -> None:
    """Rename a complete file durably; its target is on the same file system and does not exist."""
    with storage_errors(f"{path} cannot be moved to {target}"):
        os.rename(path, target)
        sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    """Fsync a directory, which makes new and renamed entries durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _rename_if_absent(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.replace(temporary, path)  # without hard links, a concurrent writer's file may be overwritten
