"""The lock that lets one process write as one rank."""

import errno
import fcntl
import os
import socket
from pathlib import Path

from proposal_cache.errors import LockedError, StorageError

_held: set[tuple[int, str]] = set()  # a process does not lock itself out, so it keeps account


class RankLock:
    """Held from `acquire` to `release`, or until the process dies, by whatever means.

    A POSIX record lock: unlike flock, it is not inherited by loader workers that outlive a killed parent, and it works
    over NFS.
    """

    def __init__(self, cache: Path, rank: int) -> None:
        self._path = cache / f".lock-r{rank:03d}"
        self._file = -1

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            LockedError: where another process, or another writer of this one, holds it.
        """
        if self._account in _held:
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
        _held.add(self._account)
        self._file = file
        self._sign()

    def release(self) -> None:
        """Gives the lock back; the file stays, for removing it would let two hold it."""
        if self._file >= 0:
            _held.discard(self._account)
            os.close(self._file)
            self._file = -1

    def _sign(self) -> None:
        """Tells others who holds it; a full disk does not matter here."""
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError:
            pass

    @property
    def _account(self) -> tuple[int, str]:
        return os.getpid(), os.path.realpath(self._path)

    def _message(self, holder: str) -> str:
        return (
            f"{self._path.parent} is being written by {holder or 'another process'}: "
            "wait for it to end, or write to another directory"
        )
