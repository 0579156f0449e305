"""Killed writers, full disks and lost mounts."""

import contextlib
import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proposal_cache import CacheWriter, PatchCache, verify
from proposal_cache.errors import CacheError, StorageError
from tests.faults.conditions import disk_full, intercept
from tests.proposal_cache.toy_cache import GENERATOR, check, make_key, make_patches, run, then_kill, write

IMAGES = 40
FAILURES = {"bad": "broken"}
CALLS = [(os, "fsync"), (os, "replace"), (os, "link"), (os, "open"), (os, "ftruncate"), (Path, "unlink")]


def fill(path: Path, images: int = IMAGES) -> None:
    write(path, range(images), 4, failures=FAILURES)


def complete_shards(path: Path) -> set[str]:
    return {file.name for file in path.glob("shard-*.h5")}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(code: int) -> Callable[[], None]:
    def action() -> None:
        raise OSError(code, os.strerror(code))

    return action


@pytest.mark.parametrize("full", [False, True], ids=["space left", "disk full"])
def test_killed_at_every_file_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """Die before the first, second, third ... of `CALLS`, including those of error handling."""
    for step in itertools.count():
        path = tmp_path / f"cache-{step}"

        def fill_and_die(path: Path = path, step: int = step) -> None:
            intercept(monkeypatch, CALLS, step, kill)
            with disk_full() if full else contextlib.nullcontext(), contextlib.suppress(StorageError):
                fill(path, 6)

        if run(fill_and_die) == [0]:
            break
        fill(path, 6)
        check(path, 6, FAILURES)
        assert not list(path.glob("*.tmp"))
    assert step > (8 if full else 20)


def test_killed_repeatedly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run continues the cache and dies one file operation later than the one before."""
    path = tmp_path / "cache"
    before: set[str] = set()
    for step in itertools.count():
        if run(lambda step=step: (intercept(monkeypatch, CALLS, step, kill), fill(path, 16))) == [0]:
            break
        assert len(list(path.glob("shard-*.tmp"))) <= 1  # files of earlier kills are removed
        assert before <= complete_shards(path)  # complete shards are never lost
        before = complete_shards(path)
    assert step > 20
    check(path, 16, FAILURES)
    assert not list(path.glob("*.tmp"))
    assert not list(path.glob("failures-*"))


def test_unfinished_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    assert run(lambda: write(path, then_kill([]))) == [-signal.SIGKILL]
    with pytest.raises(CacheError, match="cache was never finished: repeat the command"):
        PatchCache(path)


def test_readers_see_the_old_content_until_finalize(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    fill(path, 6)
    assert run(lambda: write(path, then_kill(range(19)), 4)) == [-signal.SIGKILL]
    assert len(complete_shards(path)) == 2 + 3
    assert list(PatchCache(path)) == sorted(map(make_key, range(6)))
    fill(path)
    check(path, IMAGES, FAILURES)


def test_disk_full(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    fill(path, 20)
    with disk_full(), pytest.raises(StorageError, match="File too large; what was complete before is kept"):
        fill(path)
    assert len(complete_shards(path)) == 5
    check(path, 20, FAILURES)
    assert not list(path.glob("*.tmp"))
    fill(path)
    check(path, IMAGES, FAILURES)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failing_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str) -> None:
    """Each call fails once; the error names it, no temporary file is left, and writing can be repeated."""
    path = tmp_path / "cache"
    for step in range(3):
        with monkeypatch.context() as patch:
            intercept(patch, [(os, call)], step, fail(code))
            with pytest.raises(StorageError, match=os.strerror(code)):
                fill(path)
        assert not list(path.glob("*.tmp"))
    fill(path)
    check(path, IMAGES, FAILURES)


def test_flush_retries_a_shard_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CacheWriter(tmp_path / "cache", GENERATOR, "toys", shard_size=2) as writer:
        intercept(monkeypatch, [(os, "fsync")], 0, fail(errno.ENOSPC))
        writer.add(make_key(0), make_patches(0))
        with pytest.raises(StorageError, match="No space left on device"):
            writer.add(make_key(1), make_patches(1))
        writer.flush()
        writer.add(make_key(2), make_patches(2))
    check(tmp_path / "cache", 3)


def test_images_added_before_an_exception_are_written(tmp_path: Path) -> None:
    def interrupted() -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cache", interrupted())
    check(tmp_path / "cache", 1)


def test_lost_mount_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PatchCache(write(tmp_path / "cache"))
    first = cache[make_key(3)]
    intercept(monkeypatch, [(os, "pread")], 0, fail(errno.ESTALE))
    with pytest.raises(StorageError, match=r"shard-r000-\d+.h5 cannot be read: Stale file handle"):
        cache[make_key(3)]
    assert cache[make_key(3)].rles == first.rles  # the mount works again


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("call", ["open", "pread"])
def test_unreadable_files_are_not_to_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    path = write(tmp_path / "cache")
    monkeypatch.setattr(os, call, refuse)
    problems = [verdict.problem for verdict in verify(path) if verdict.problem]
    assert len(problems) == 1 + 3  # index and shards
    assert all(problem.endswith(os.strerror(code)) for problem in problems)


def test_lost_directory_while_writing(tmp_path: Path) -> None:
    """The error names the file; when the directory is back, the same program continues."""
    path, away = tmp_path / "cache", tmp_path / "away"

    def lose_after(images: int) -> Iterator[int]:
        yield from range(images)
        path.rename(away)

    for images in (6, 8):  # with an open shard, and without one
        with pytest.raises(StorageError, match=r"cache.* cannot be (written|read): No such file"):
            write(path, lose_after(images), 4)
        away.rename(path)
    fill(path)
    check(path, IMAGES, FAILURES)
