"""A cache of 25 images in 3 shards, and its expected content."""

from pathlib import Path

import numpy as np

from proposal_cache import CacheWriter, Patches

GENERATOR = {"name": "test", "threshold": 0.8, "weights": {"sha256": "ab"}}


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


def write(path: Path, numbers: range = range(25), shard_size: int = 10) -> Path:
    with CacheWriter(path, GENERATOR, "toys", shard_size) as cache:
        for i in numbers:
            if make_key(i) not in cache.done:
                cache.add(make_key(i), make_patches(i))
    return path
