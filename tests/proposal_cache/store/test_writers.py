"""Concurrent writers of one cache."""

import contextlib
import functools
import os
import signal
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proposal_cache import CacheWriter, PatchCache, finalize, verify
from proposal_cache.errors import LockedError, StorageError
from proposal_cache.store import Manifest
from proposal_cache.store.lock import manifest_lock, rank_lock
from tests.proposal_cache.toy_cache import GENERATOR, check, fork, make_key, make_patches, run, then_kill, write

IMAGES = 40


def fill(path: Path, rank: int = 0, ranks: int = 1) -> None:
    write(path, range(rank, IMAGES, ranks), 4, rank=rank, ranks=ranks)


def test_second_writer_is_rejected_while_the_first_runs(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    test, writing = fork.Pipe()

    def hold() -> None:
        """Write until killed, with a worker process that outlives the writer."""
        test.close()
        with CacheWriter(path, GENERATOR, "toys", shard_size=4) as writer:
            writer.add(make_key(0), make_patches(0))
            if os.fork() == 0:
                with contextlib.suppress(EOFError):
                    writing.recv()
                os._exit(0)
            writing.send("locked")
            signal.pause()

    first = fork.Process(target=hold, daemon=True)
    first.start()
    writing.close()
    with test:  # the worker runs until the end of this block
        assert test.recv() == "locked"
        with pytest.raises(LockedError, match=f"cache is being written by process {first.pid} on"):
            CacheWriter(path, GENERATOR, "toys")
        assert finalize(path).images == 0  # complete shards only
        first.kill()
        first.join()
        fill(path)
    check(path, IMAGES)


def test_lock_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("not ours")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / ".lock-r000").symlink_to(tmp_path / "other.txt")
    with pytest.raises(StorageError, match=r"\.lock-r000 cannot be written"):
        CacheWriter(cache, GENERATOR, "toys")
    assert (tmp_path / "other.txt").read_text() == "not ours"


def test_second_writer_in_one_process_is_rejected(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, GENERATOR, "toys"), pytest.raises(LockedError, match="by this process"):
        CacheWriter(tmp_path, GENERATOR, "toys")
    write(tmp_path)


@pytest.mark.parametrize("ranks", [2, 3])
def test_content_does_not_depend_on_the_number_of_ranks(tmp_path: Path, ranks: int) -> None:
    path = tmp_path / "cache"
    assert run(*(functools.partial(fill, path, rank, ranks) for rank in range(ranks))) == [0] * ranks
    assert Manifest.load(path).index is None  # a single rank does not finalize
    assert finalize(path).images == IMAGES
    check(path, IMAGES)


def test_ranks_with_equal_process_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers; they start at the same moment, and one creates the manifest."""
    monkeypatch.setattr(os, "getpid", lambda: 67)

    def begin(path: Path, start: Any, rank: int) -> None:
        start.wait()
        write(path, [rank], rank=rank, ranks=2)

    for attempt in range(15):
        path, start = tmp_path / f"cache-{attempt}", fork.Barrier(2)
        assert run(*(functools.partial(begin, path, start, rank) for rank in range(2))) == [0, 0]
        assert finalize(path).images == 2


def test_number_of_ranks_may_change_between_runs(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    for rank in range(3):
        numbers = then_kill(range(rank, IMAGES // 2, 3))
        assert run(functools.partial(write, path, numbers, 4, rank=rank, ranks=3)) == [-signal.SIGKILL]
    incomplete = path / "shard-r002-00009.h5.123abc.tmp"
    incomplete.write_bytes(b"half")
    fill(path)
    check(path, IMAGES)
    assert not incomplete.exists()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("here", [True, False], ids=["same process", "another process"])
def test_finalize_keeps_files_of_a_rank_that_is_writing(tmp_path: Path, rank: int, here: bool) -> None:
    path = write(tmp_path / "cache", range(20), failures={"bad": "broken"})
    with CacheWriter(path, GENERATOR, "toys", shard_size=5, rank=rank, ranks=2) as writer:
        for i in range(20, 25):
            writer.add(make_key(i), make_patches(i))
        writer.add_failure("other", "late")
        (path / f"shard-r{rank:03}-00009.h5.123abc.tmp").write_bytes(b"half")
        assert finalize(path) if here else run(lambda: finalize(path)) == [0]
        check(path, 25, {"bad": "broken", "other": "late"})
        assert (path / f"shard-r{rank:03}-00009.h5.123abc.tmp").exists()
        writer.add_failure("last", "later")
    finalize(path)
    check(path, failures={"bad": "broken", "other": "late", "last": "later"})
    assert not [*path.glob("*.tmp"), *path.glob("failures-*")]


def test_finalize_waits_for_another_and_keeps_its_failures(tmp_path: Path) -> None:
    path = write(tmp_path / "cache", failures={"bad": "broken"})
    with ThreadPoolExecutor() as pool, manifest_lock(path):
        waiting = pool.submit(finalize, path)
        assert not wait([waiting], timeout=0.2).done
        manifest = Manifest.load(path)
        replace(manifest, failures={**manifest.failures, "other": "late"}).save(path)
    assert dict(waiting.result().failures) == {"bad": "broken", "other": "late"}


def test_rank_that_starts_waits_for_finalize(tmp_path: Path) -> None:
    path = write(tmp_path / "cache", range(20))
    with ThreadPoolExecutor() as pool, manifest_lock(path), rank_lock(path, 0):
        waiting = pool.submit(write, path)
        assert not wait([waiting], timeout=0.2).done
    check(waiting.result())


def test_finalize_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "cache")
    monkeypatch.setattr("proposal_cache.store.lock._PATIENCE", 0)
    with manifest_lock(path), pytest.raises(LockedError, match="wait for it to end"):
        finalize(path)


def test_image_in_two_shards_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with CacheWriter(path, GENERATOR, "toys", ranks=2) as a, CacheWriter(path, GENERATOR, "toys", rank=1, ranks=2) as b:
        for writer in (a, b):
            writer.add("same", make_patches(3))
    assert finalize(path).images == 1
    assert len(PatchCache(path)["same"]) == 3
    assert all(verdict.problem is None for verdict in verify(path))
