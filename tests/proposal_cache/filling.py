"""A program that fills a cache with 40 images and may be killed."""

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from proposal_cache import CacheWriter, PatchCache, Patches, verify

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
    """Add the missing images of this rank."""
    with CacheWriter(path, GENERATOR, "toys", shard_size=4, rank=rank, ranks=ranks) as writer:
        if rank == 0:
            writer.add_failure(FAILING, "broken")
        for i in range(rank, images, ranks):
            if make_key(i) not in writer.done:
                writer.add(make_key(i), make_patches(i))
                time.sleep(pause)


def content(path: Path) -> dict[str, Any]:
    """Return the content of a valid cache, independent of its division into shards."""
    cache = PatchCache(path)
    assert [verdict for verdict in verify(path) if verdict.problem] == []
    found: dict[str, Any] = {"failures": cache.manifest.failures}
    for key, patches in cache.items():
        columns = (patches.boxes, patches.areas, patches.predicted_iou)
        found[key] = (patches.height, patches.width, patches.rles, *(column.tolist() for column in columns))
    return found


def run(work: Callable[[], object], kill: Callable[[], object] | None = None) -> int:
    """Run `work` in a child process and return its exit code; SIGKILL it when `kill` returns."""
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
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.001)

    return wait
