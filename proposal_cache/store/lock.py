"""File locks of a cache: one per rank, held by the process that writes it, and one of manifest and index."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from proposal_cache.errors import LockedError
from proposal_cache.store.durable import storage_errors

_HOLDER = 200  # bytes of the holder's name, padded, so that it replaces that of the last holder
_PATIENCE = 600.0  # seconds to wait for manifest and index
_INTERVAL = 0.05  # seconds between two attempts

_held: set[tuple[int, str]] = set()  # POSIX locks do not exclude the process that holds them


@contextlib.contextmanager
def rank_lock(cache: Path, rank: int) -> Iterator[None]:
    """Hold the lock of one rank, until the block ends or the process dies.

    Raises:
        LockedError: if another process, or another writer in this process, holds it.
        StorageError: if the lock file cannot be created or locked.
    """
    with _lock(cache, f".lock-r{rank:03d}"):
        yield


@contextlib.contextmanager
def manifest_lock(cache: Path) -> Iterator[None]:
    """Wait for the lock of manifest and index, and hold it until the block ends or the process dies.

    Raises:
        LockedError: if another process or thread has held it for ten minutes.
        StorageError: if the lock file cannot be created or locked.
    """
    deadline = time.monotonic() + _PATIENCE
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(_lock(cache, ".lock-manifest"))
                break
            except LockedError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_INTERVAL)
        yield


@contextlib.contextmanager
def _lock(cache: Path, name: str) -> Iterator[None]:
    """Hold a POSIX record lock: unlike flock, worker processes that outlive a killed parent do not inherit it.

    It works over NFS. The file stays: removing it would allow two processes to hold the lock.
    """
    path = cache / name
    identity = os.getpid(), os.path.realpath(path)
    if identity in _held:
        raise LockedError(_message(cache, "this process"))
    _held.add(identity)
    try:
        with storage_errors(f"{path} cannot be written"):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            with storage_errors(f"{path} cannot be locked"):
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError) as error:  # systems differ
                    holder = os.pread(file, _HOLDER, 0).decode(errors="replace").strip()
                    raise LockedError(_message(cache, holder or "another process")) from error
            with contextlib.suppress(OSError):  # the holder's name is only for error messages
                holder = f"process {os.getpid()} on {socket.gethostname()}"
                os.pwrite(file, f"{holder:{_HOLDER - 1}.{_HOLDER - 1}}\n".encode(), 0)
            yield
        finally:
            os.close(file)
    finally:
        _held.discard(identity)  # last: closing any descriptor of the file releases the lock of another thread


def _message(cache: Path, holder: str) -> str:
    return f"{cache} is being written by {holder}: wait for it to end, or write to another directory"
