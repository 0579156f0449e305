"""The cache in bad times: writers killed at every point, full disks, two writers, several ranks."""

import contextlib
import errno
import functools
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proposal_cache import CacheWriter, PatchCache, Patches, join, verify
from proposal_cache.errors import CacheError, LockedError, StorageError
from proposal_cache.store.manifest import Manifest

GENERATOR = {"name": "test"}
IMAGES = 40
FAILING = "im/bad"

fork = multiprocessing.get_context("fork")


def make_patches(i: int) -> Patches:
    rng = np.random.default_rng(i)
    return Patches.from_masks(rng.random((i % 4, 9, 11)) < 0.5, predicted_iou=rng.random(i % 4))


def make_key(i: int) -> str:
    return f"im/{i:03d}"


def write(path: Path, *, images: int = IMAGES, rank: int = 0, ranks: int = 1, pause: float = 0.0) -> None:
    """Makes, or goes on making, this rank's share of the images."""
    with CacheWriter(path, GENERATOR, "toys", shard_size=4, rank=rank, ranks=ranks) as writer:
        if rank == 0:
            writer.add_failure(FAILING, "broken")
        for i in range(rank, images, ranks):
            if make_key(i) not in writer.done:
                writer.add(make_key(i), make_patches(i))
                time.sleep(pause)


def content(path: Path) -> dict[str, Any]:
    """Everything a reader can learn from a sound cache, but how it is cut into shards."""
    cache = PatchCache(path)
    assert [verdict for verdict in verify(path) if verdict.problem] == []
    found: dict[str, Any] = {"failures": cache.manifest.failures}
    for key, patches in cache.items():
        scores = patches.predicted_iou.tolist()
        found[key] = (
            patches.height,
            patches.width,
            patches.rles,
            patches.boxes.tolist(),
            patches.areas.tolist(),
            scores,
        )
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run without any trouble makes."""
    path = tmp_path_factory.mktemp("undisturbed") / "cache"
    write(path)
    found = content(path)
    assert len(found) == IMAGES + 1
    return found


def run(work: Callable[[], object], kill: Callable[[], object] | None = None) -> int:
    """Runs it in a child and gives the exit code; kills the child, as kill -9 does, as soon as `kill` returns."""
    child = fork.Process(target=work)
    child.start()
    if kill is not None:
        kill()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def after(seconds: float) -> Callable[[], None]:
    return functools.partial(time.sleep, seconds)


def once(condition: Callable[[], object]) -> Callable[[], None]:
    def wait() -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.001)

    return wait


def complete_shards(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("shard-*.h5"))


def test_killed_at_random_moments_again_and_again(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    path = tmp_path / "cache"
    rng = np.random.default_rng()
    before: list[str] = []
    kills = 0
    while run(lambda: write(path, pause=0.02), after(rng.uniform(0, 0.1 * 1.1**kills))) == -signal.SIGKILL:
        kills += 1
        now = complete_shards(path)
        assert len(list(path.glob("shard-*.tmp"))) <= 1  # what earlier kills have left is gone
        assert set(before) <= set(now)  # nothing complete is ever lost
        before = now
    assert kills > 2
    write(path)
    assert content(path) == undisturbed
    assert not list(path.glob("*.tmp"))
    assert not list(path.glob("failures-*"))


CALLS = [(os, "fsync"), (os, "replace"), (os, "link"), (os, "open"), (os, "ftruncate"), (Path, "unlink")]


@pytest.mark.parametrize("largest_file", [resource.RLIM_INFINITY, 2000], ids=["space left", "disk full"])
def test_killed_at_every_step_of_writing(tmp_path: Path, largest_file: int) -> None:
    """Dies before the first, second, third ... call by which files come and go, also those of giving up."""
    write(tmp_path / "undisturbed", images=6)
    expected = content(tmp_path / "undisturbed")
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
    """Makes this process kill itself at the given call, counted over all `CALLS`."""
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


def test_unfinished_cache_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    run(lambda: write(path, pause=1), once((path / "manifest.json").exists))
    with pytest.raises(CacheError, match="cache was never finished: run the command that was making it again"):
        PatchCache(path)


def test_readers_keep_the_old_content_until_the_new_is_joined(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    path = tmp_path / "cache"
    with CacheWriter(path, GENERATOR, "toys", shard_size=4) as writer:
        for i in range(6):
            writer.add(make_key(i), make_patches(i))
    run(lambda: write(path, pause=0.02), once(lambda: len(complete_shards(path)) > 4))
    cache = PatchCache(path)
    assert list(cache) == [make_key(i) for i in range(6)]
    write(path)
    assert content(path) == undisturbed


# A full disk


def test_disk_full(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """A limit on the size of files stands in for a disk that takes no more: small shards fit, a large one does not."""
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
    assert content(path) == undisturbed


def error_of(work: Callable[[], None]) -> str:
    """The message of the StorageError that it must raise, in a child."""
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
    tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    """Each call fails once: the error tells it, nothing is left half written, and the writer can go on."""
    path = tmp_path / "cache"
    honest = getattr(os, call)
    for step in range(3):
        calls = 0

        def failing(*arguments: Any, step: int = step, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise OSError(code, os.strerror(code))
            return honest(*arguments, **options)

        monkeypatch.setattr(os, call, failing)
        with pytest.raises(StorageError, match=os.strerror(code)):
            write(path)
        monkeypatch.setattr(os, call, honest)
        assert not list(path.glob("*.tmp"))
    write(path)
    assert content(path) == undisturbed


def test_shard_that_could_not_be_written_is_kept_for_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]
    honest = os.fsync

    def fsync(descriptor: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(descriptor)

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


def test_work_done_before_an_error_is_kept(tmp_path: Path) -> None:
    def interrupted() -> None:
        with CacheWriter(tmp_path / "cache", GENERATOR, "toys") as writer:
            writer.add(make_key(0), make_patches(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(PatchCache(tmp_path / "cache")) == [make_key(0)]


def test_mount_that_is_cut_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "cache")
    cache = PatchCache(tmp_path / "cache")
    first = cache[make_key(3)]

    def stale(*_: Any) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as cut:
        cut.setattr(os, "pread", stale)
        with pytest.raises(StorageError, match=r"shard-r000-\d+.h5 cannot be read: Stale file handle"):
            cache[make_key(3)]
    assert cache[make_key(3)].rles == first.rles  # the mount is back


def test_directory_that_goes_away_while_writing(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """As a mount does that is cut: the error names the file, and when it is back, the same program goes on."""
    path, away = tmp_path / "cache", tmp_path / "away"

    def write_until_cut(images: int) -> None:
        with CacheWriter(path, GENERATOR, "toys", shard_size=4) as writer:
            for i in range(images):
                if make_key(i) not in writer.done:
                    writer.add(make_key(i), make_patches(i))
            path.rename(away)

    for images in (6, 8):  # with an open shard, and without one
        with pytest.raises(StorageError, match=r"cache.* cannot be (written|read): No such file"):
            write_until_cut(images)
        away.rename(path)
    write(path)
    assert content(path) == undisturbed


# Two writers


def test_second_writer_is_refused_while_the_first_lives(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    path = tmp_path / "cache"
    ready, go = fork.Event(), fork.Event()

    def hold() -> None:
        """Writes, with a loader worker of its own that outlives it."""
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
        join(path)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    write(path)  # at once, though the worker still lives
    go.set()
    assert content(path) == undisturbed


def test_second_writer_in_one_process_is_refused(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, GENERATOR, "toys"), pytest.raises(LockedError, match="by this process"):
        CacheWriter(tmp_path, GENERATOR, "toys")
    write(tmp_path)


# Several ranks


@pytest.mark.parametrize("ranks", [2, 3])
def test_content_does_not_depend_on_the_number_of_ranks(
    tmp_path: Path, undisturbed: dict[str, Any], ranks: int
) -> None:
    path = tmp_path / "cache"
    children = [fork.Process(target=write, args=(path,), kwargs={"rank": r, "ranks": ranks}) for r in range(ranks)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * ranks
    assert Manifest.load(path).index is None  # no rank may join before the others are done
    assert join(path).images == IMAGES
    assert content(path) == undisturbed


def test_ranks_with_equal_process_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of two containers may be: they start at the same moment, and one makes the manifest."""
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
        assert join(path).images == 2


def test_ranks_may_change_from_run_to_run(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    path = tmp_path / "cache"
    for rank, pause in ((0, 0.0), (1, 0.02), (2, 0.02)):
        run(functools.partial(write, path, rank=rank, ranks=3, pause=pause), after(0.25))
    half_written = path / "shard-r002-00009.h5.123abc.tmp"
    half_written.write_bytes(b"half")
    write(path)
    assert content(path) == undisturbed
    assert not half_written.exists()


def test_joining_leaves_a_rank_that_still_writes_alone(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    write(path)
    with CacheWriter(path, GENERATOR, "toys", rank=1, ranks=2) as writer:
        writer.add_failure("im/other", "late")
        (path / "shard-r001-00000.h5.123abc.tmp").write_bytes(b"half")
        assert run(lambda: join(path)) == 0  # in another process, as the lock counts for the whole of one
        assert (path / "shard-r001-00000.h5.123abc.tmp").exists()
        assert list(path.glob("failures-*"))
    assert join(path).failures == {FAILING: "broken", "im/other": "late"}
    assert not list(path.glob("*.tmp"))


def test_image_in_two_shards_counts_once(tmp_path: Path) -> None:
    """Two ranks that were started to do the same."""
    path = tmp_path / "cache"
    with CacheWriter(path, GENERATOR, "toys", ranks=2) as a, CacheWriter(path, GENERATOR, "toys", rank=1, ranks=2) as b:
        for writer in (a, b):
            writer.add("same", make_patches(3))
    assert join(path).images == 1
    assert len(PatchCache(path)["same"]) == 3
    assert all(verdict.problem is None for verdict in verify(path))
