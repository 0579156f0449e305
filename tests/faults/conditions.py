"""Conditions under which programs are tested: a full disk, and Ctrl-C at a given moment."""

import contextlib
import itertools
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def disk_full(file_size: int = 2000) -> Iterator[None]:
    """Simulate a full disk by a limit on the size of each file, in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def intercept(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[Any, str]], step: int, action: Callable[[], object]
) -> None:
    """Do `action` before one call, the step-th from 0, counted over all `calls`."""
    remaining = itertools.count(step, -1)

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if next(remaining) == 0:
                action()
            return call(*arguments, **options)

        return counted

    for owner, name in calls:
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))


def interrupt() -> None:
    """Send Ctrl-C to this process."""
    os.kill(os.getpid(), signal.SIGINT)


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the content of all files by their path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
