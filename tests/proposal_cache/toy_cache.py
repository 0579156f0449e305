"""A cache of small images, the processes that write it, and a check of its content."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from proposal_cache import CacheWriter, PatchCache, Patches, verify

GENERATOR = {"name": "test", "threshold": 0.8, "weights": {"sha256": "ab"}}

fork = multiprocessing.get_context("fork")


def make_patches(seed: int) -> Patches:
    """Return up to nine rectangles in an image of random size."""
    rng = np.random.default_rng(seed)
    count = seed % 10
    height, width = int(rng.integers(5, 60)), int(rng.integers(5, 60))
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.integers(height), rng.integers(width)
        mask[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)] = True
    scores = rng.random(count) if seed % 2 else None
    return Patches.from_masks(masks, predicted_iou=rng.random(count), stability_score=scores)


def make_key(i: int) -> str:
    return f"folder {i % 3}/im\u00e4ge.{i:04d}"


def same(a: Patches, b: Patches) -> bool:
    columns = ("boxes", "areas", "predicted_iou", "stability_score", "source")
    return (
        (a.height, a.width, a.rles) == (b.height, b.width, b.rles)
        and all(np.array_equal(getattr(a, c), getattr(b, c), equal_nan=c != "source") for c in columns)
        and all(getattr(a, c).dtype == getattr(b, c).dtype for c in columns)
    )


def write(
    path: Path, numbers: Iterable[int] = range(25), shard_size: int = 10, failures: Any = (), **ranks: int
) -> Path:
    """Add the missing images and the failures; `ranks` are `rank` and `ranks` of the writer."""
    with CacheWriter(path, GENERATOR, "toys", shard_size, **ranks) as writer:
        for key, reason in dict(failures).items():
            writer.add_failure(key, reason)
        for i in numbers:
            if make_key(i) not in writer.done:
                writer.add(make_key(i), make_patches(i))
    return path


def then_kill(numbers: Iterable[int]) -> Iterator[int]:
    """Yield the numbers, then SIGKILL this process."""
    yield from numbers
    os.kill(os.getpid(), signal.SIGKILL)


def check(path: Path, images: int = 25, failures: Any = ()) -> PatchCache:
    """Assert that a cache is valid and contains exactly the first images and the failures; return it."""
    cache = PatchCache(path)
    assert [verdict for verdict in verify(path) if verdict.problem] == []
    assert list(cache) == sorted(map(make_key, range(images)))
    assert all(same(cache[make_key(i)], make_patches(i)) for i in range(images))
    assert cache.manifest.failures == dict(failures)
    return cache


def run(*works: Callable[[], object]) -> list[int | None]:
    """Run functions in child processes at the same time and return their exit codes."""
    children = [fork.Process(target=work) for work in works]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode for child in children]
