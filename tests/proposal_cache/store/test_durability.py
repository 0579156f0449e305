"""Killed writers, full disks and lost mounts."""

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proposal_cache import CacheWriter, PatchCache
from proposal_cache.errors import CacheError, StorageError
from tests.proposal_cache.filling import (
    GENERATOR,
    after,
    content,
    fork,
    make_key,
    make_patches,
    once,
    run,
    write,
)


def complete_shards(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("shard-*.h5"))


def test_killed_at_random_times(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    path = tmp_path / "cache"
    rng = np.random.default_rng()
    before: list[str] = []
    kills = 0
    while run(lambda: write(path, pause=0.02), after(rng.uniform(0, 0.1 * 1.1**kills))) == -signal.SIGKILL:
        kills += 1
        now = complete_shards(path)
        assert len(list(path.glob("shard-*.tmp"))) <= 1  # files of earlier kills are removed
        assert set(before) <= set(now)  # complete shards are never lost
        before = now
    assert kills > 2
    write(path)
    assert content(path) == uninterrupted
    assert not list(path.glob("*.tmp"))
    assert not list(path.glob("failures-*"))


CALLS = [(os, "fsync"), (os, "replace"), (os, "link"), (os, "open"), (os, "ftruncate"), (Path, "unlink")]


@pytest.mark.parametrize("largest_file", [resource.RLIM_INFINITY, 2000], ids=["space left", "disk full"])
def test_killed_at_every_file_operation(tmp_path: Path, largest_file: int) -> None:
    """Die before the first, second, third ... of `CALLS`, including those of error handling."""
    write(tmp_path / "uninterrupted", images=6)
    expected = content(tmp_path / "uninterrupted")
    for step in range(1000):
        path = tmp_path / f"cache-{step}"

        def write_and_die(path: Path = path, step: int = step) -> None:
            die_at(step)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            with contextlib.suppress(StorageError):
                write(path, images=6)

        if run(write_and_die) == 0:
            break
        write(path, images=6)
        assert content(path) == expected
        assert not list(path.glob("*.tmp"))
    assert step > (20 if largest_file == resource.RLIM_INFINITY else 8)


def die_at(step: int) -> None:
    """Make this process kill itself at the given call, counted over all `CALLS`."""
    count = 0

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return call(*arguments, **options)

        return counted

    for owner, name in CALLS:
        setattr(owner, name, wrap(getattr(owner, name)))


def test_unfinished_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    run(lambda: write(path, pause=1), once((path / "manifest.json").exists))
    with pytest.raises(CacheError, match="cache was never finished: repeat the command"):
        PatchCache(path)


def test_readers_see_the_old_content_until_finalize(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    path = tmp_path / "cache"
    with CacheWriter(path, GENERATOR, "toys", shard_size=4) as writer:
        for i in range(6):
            writer.add(make_key(i), make_patches(i))
    run(lambda: write(path, pause=0.02), once(lambda: len(complete_shards(path)) > 4))
    cache = PatchCache(path)
    assert list(cache) == [make_key(i) for i in range(6)]
    write(path)
    assert content(path) == uninterrupted


def test_disk_full(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """Simulated by a limit on file size: small shards fit, a large one does not."""
    path = tmp_path / "cache"

    def write_until_full() -> None:
        with CacheWriter(path, GENERATOR, "toys", shard_size=4) as writer:
            for i in range(20):
                writer.add(make_key(i), make_patches(i))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        write(path)

    assert "File too large; what was complete before is kept" in error_of(write_until_full)
    assert len(complete_shards(path)) == 5
    assert list(PatchCache(path)) == [make_key(i) for i in range(20)]
    assert not list(path.glob("*.tmp"))
    write(path)
    assert content(path) == uninterrupted


def error_of(work: Callable[[], None]) -> str:
    """Return the message of the StorageError that `work` raises in a child process."""
    receiver, sender = fork.Pipe(duplex=False)

    def caught() -> None:
        try:
            work()
        except StorageError as error:
            sender.send(str(error))

    assert run(caught) == 0
    assert receiver.poll()
    return receiver.recv()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failing_calls(
    tmp_path: Path, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    """Each call fails once; the error names it, no temporary file is left, and writing can be repeated."""
    path = tmp_path / "cache"
    original = getattr(os, call)
    for step in range(3):
        calls = 0

        def failing(*arguments: Any, step: int = step, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise OSError(code, os.strerror(code))
            return original(*arguments, **options)

        monkeypatch.setattr(os, call, failing)
        with pytest.raises(StorageError, match=os.strerror(code)):
            write(path)
        monkeypatch.setattr(os, call, original)
        assert not list(path.glob("*.tmp"))
    write(path)
    assert content(path) == uninterrupted


def test_flush_retries_a_shard_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = [True]
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    path = tmp_path / "cache"
    with CacheWriter(path, GENERATOR, "toys", shard_size=2) as writer:
        monkeypatch.setattr(os, "fsync", fsync)
        writer.add(make_key(0), make_patches(0))
        with pytest.raises(StorageError, match="No space left on device"):
            writer.add(make_key(1), make_patches(1))
        full[0] = False
        writer.flush()
        writer.add(make_key(2), make_patches(2))
    assert list(PatchCache(path)) == [make_key(i) for i in range(3)]


def test_images_added_before_an_exception_are_written(tmp_path: Path) -> None:
    def interrupted() -> None:
        with CacheWriter(tmp_path / "cache", GENERATOR, "toys") as writer:
            writer.add(make_key(0), make_patches(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(PatchCache(tmp_path / "cache")) == [make_key(0)]


def test_lost_mount_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "cache")
    cache = PatchCache(tmp_path / "cache")
    first = cache[make_key(3)]

    def stale(*_: Any) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", stale)
        with pytest.raises(StorageError, match=r"shard-r000-\d+.h5 cannot be read: Stale file handle"):
            cache[make_key(3)]
    assert cache[make_key(3)].rles == first.rles  # the mount works again


def test_lost_directory_while_writing(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """The error names the file; when the directory is back, the same program continues."""
    path, away = tmp_path / "cache", tmp_path / "away"

    def write_until_lost(images: int) -> None:
        with CacheWriter(path, GENERATOR, "toys", shard_size=4) as writer:
            for i in range(images):
                if make_key(i) not in writer.done:
                    writer.add(make_key(i), make_patches(i))
            path.rename(away)

    for images in (6, 8):  # with an open shard, and without one
        with pytest.raises(StorageError, match=r"cache.* cannot be (written|read): No such file"):
            write_until_lost(images)
        away.rename(path)
    write(path)
    assert content(path) == uninterrupted
