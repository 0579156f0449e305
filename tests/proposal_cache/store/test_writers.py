"""Concurrent writers of one cache."""

import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from proposal_cache import CacheWriter, PatchCache, finalize, verify
from proposal_cache.errors import LockedError
from proposal_cache.store.manifest import Manifest
from tests.proposal_cache.filling import (
    FAILING,
    GENERATOR,
    IMAGES,
    after,
    content,
    fork,
    make_key,
    make_patches,
    run,
    write,
)


def test_second_writer_is_rejected_while_the_first_runs(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    path = tmp_path / "cache"
    ready, go = fork.Event(), fork.Event()

    def hold() -> None:
        """Write, with a worker process that outlives the writer."""
        with CacheWriter(path, GENERATOR, "toys", shard_size=4) as writer:
            writer.add(make_key(0), make_patches(0))
            if os.fork() == 0:
                go.wait(20)
                os._exit(0)
            ready.set()
            time.sleep(20)

    first = fork.Process(target=hold)
    first.start()
    assert ready.wait(20)
    with pytest.raises(LockedError, match=f"cache is being written by process {first.pid} on"):
        CacheWriter(path, GENERATOR, "toys")
    with pytest.raises(LockedError):
        finalize(path)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    write(path)  # the worker is still running
    go.set()
    assert content(path) == uninterrupted


def test_second_writer_in_one_process_is_rejected(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, GENERATOR, "toys"), pytest.raises(LockedError, match="by this process"):
        CacheWriter(tmp_path, GENERATOR, "toys")
    write(tmp_path)


@pytest.mark.parametrize("ranks", [2, 3])
def test_content_does_not_depend_on_the_number_of_ranks(
    tmp_path: Path, uninterrupted: dict[str, Any], ranks: int
) -> None:
    path = tmp_path / "cache"
    children = [fork.Process(target=write, args=(path,), kwargs={"rank": r, "ranks": ranks}) for r in range(ranks)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * ranks
    assert Manifest.load(path).index is None  # a single rank does not finalize
    assert finalize(path).images == IMAGES
    assert content(path) == uninterrupted


def test_ranks_with_equal_process_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers; they start at the same moment, and one creates the manifest."""
    monkeypatch.setattr(os, "getpid", lambda: 67)
    for attempt in range(15):
        path, start = tmp_path / f"cache-{attempt}", fork.Barrier(2)

        def begin(rank: int, path: Path = path, start: Any = start) -> None:
            start.wait()
            write(path, images=2, rank=rank, ranks=2)

        children = [fork.Process(target=begin, args=(rank,)) for rank in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0]
        assert finalize(path).images == 2


def test_number_of_ranks_may_change_between_runs(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    path = tmp_path / "cache"
    for rank, pause in ((0, 0.0), (1, 0.02), (2, 0.02)):
        run(functools.partial(write, path, rank=rank, ranks=3, pause=pause), after(0.25))
    incomplete = path / "shard-r002-00009.h5.123abc.tmp"
    incomplete.write_bytes(b"half")
    write(path)
    assert content(path) == uninterrupted
    assert not incomplete.exists()


def test_finalize_keeps_files_of_a_rank_that_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    write(path)
    with CacheWriter(path, GENERATOR, "toys", rank=1, ranks=2) as writer:
        writer.add_failure("im/other", "late")
        (path / "shard-r001-00000.h5.123abc.tmp").write_bytes(b"half")
        assert run(lambda: finalize(path)) == 0  # in another process, because the lock is per process
        assert (path / "shard-r001-00000.h5.123abc.tmp").exists()
        assert list(path.glob("failures-*"))
    assert finalize(path).failures == {FAILING: "broken", "im/other": "late"}
    assert not list(path.glob("*.tmp"))


def test_image_in_two_shards_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with CacheWriter(path, GENERATOR, "toys", ranks=2) as a, CacheWriter(path, GENERATOR, "toys", rank=1, ranks=2) as b:
        for writer in (a, b):
            writer.add("same", make_patches(3))
    assert finalize(path).images == 1
    assert len(PatchCache(path)["same"]) == 3
    assert all(verdict.problem is None for verdict in verify(path))
