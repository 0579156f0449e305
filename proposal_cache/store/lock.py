"""File lock that restricts each rank of a cache to one writing process."""

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path

from proposal_cache.errors import LockedError, StorageError

_held: set[tuple[int, str]] = set()  # POSIX locks do not exclude the process that holds them


class RankLock:
    """Lock of one rank, held from `acquire` until `release` or until the process ends.

    A POSIX record lock: unlike flock, it is not inherited by worker processes that outlive a killed parent, and it
    works over NFS.
    """

    def __init__(self, cache: Path, rank: int) -> None:
        self._path = cache / f".lock-r{rank:03d}"
        self._file = -1

    def acquire(self) -> None:
        """Acquire the lock.

        Raises:
            LockedError: if another process, or another writer in this process, holds it.
            StorageError: if the lock file cannot be created or locked.
        """
        if self._id in _held:
            raise LockedError(self._message("this process"))
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise LockedError(self._message(holder)) from error
            raise StorageError(f"{self._path} cannot be locked: {error.strerror}") from error
        _held.add(self._id)
        self._file = file
        self._write_holder()

    def release(self) -> None:
        """Release the lock. The file stays: removing it would allow two processes to hold the lock."""
        if self._file >= 0:
            _held.discard(self._id)
            os.close(self._file)
            self._file = -1

    def _write_holder(self) -> None:
        """Write the holder's name for error messages; failures are ignored."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    @property
    def _id(self) -> tuple[int, str]:
        return os.getpid(), os.path.realpath(self._path)

    def _message(self, holder: str) -> str:
        return (
            f"{self._path.parent} is being written by {holder or 'another process'}: "
            "wait for it to end, or write to another directory"
        )
