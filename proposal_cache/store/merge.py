"""Merging of caches that hold different images, or patches of the same images by different generators."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches
from proposal_cache.store.reader import PatchCache
from proposal_cache.store.writer import CacheWriter


class MergeError(CacheError):
    """Caches cannot be merged."""


def merge(
    caches: Sequence[PatchCache], output: str | os.PathLike[str], *, dataset: str | None = None, progress: bool = False
) -> None:
    """Merge caches into a new one that contains every image with its patches from all of them.

    `Patches.source` distinguishes their generators. An image stays a failure only if no cache contains it. If
    interrupted, the same call continues, unless the caches have changed in the meantime.

    >>> for name in ("one", "two"):
    ...     with CacheWriter(name, {"name": name}, "example") as writer:
    ...         writer.add("a", Patches.from_masks(np.ones((1, 4, 6), dtype=bool)))
    >>> merge([PatchCache("one"), PatchCache("two")], "both")
    >>> PatchCache("both")["a"].source
    array([0, 1], dtype=uint8)

    Raises:
        MergeError: if the datasets of the caches differ and `dataset`, the name of the new one, is None, or if two
            caches contain the same image from the same generator. Nothing is written in these cases.
        CacheError: if the sizes of an image differ between caches.
        MismatchError: if `output` contains another cache, or the caches have changed since an interrupted call.
    """
    datasets = sorted({cache.manifest.dataset for cache in caches})
    if dataset is None and len(datasets) > 1:
        raise MergeError(f"the datasets of the caches differ ({', '.join(datasets)}): name the new one with --dataset")
    generators: list[dict] = []
    for cache in caches:
        generators += [g for g in cache.manifest.generators if g not in generators]
    if len(generators) > 256:
        raise MergeError(f"the caches have {len(generators)} generators in total; a cache supports at most 256")
    # The index of each cache's generators in the merged cache.
    sources = [np.array([generators.index(g) for g in cache.manifest.generators], np.uint8) for cache in caches]
    _check_distinct(caches)
    keys = sorted(set().union(*caches))
    failures = {key: reason for cache in caches for key, reason in cache.manifest.failures.items()}
    # Not of the files: their checksums depend on the division into shards.
    contents = ["\n".join([str(cache.manifest.patches), *cache]) for cache in caches]
    inputs = [hashlib.sha256(content.encode()).hexdigest() for content in contents]
    with CacheWriter(output, generators, dataset or datasets[0], inputs=inputs) as writer:
        for key in tqdm(keys, "merging", unit="image", disable=not progress):
            if key not in writer.done:
                parts = [(cache[key], renamed) for cache, renamed in zip(caches, sources, strict=True) if key in cache]
                writer.add(key, Patches.concatenate([replace(p, source=renamed[p.source]) for p, renamed in parts]))
        for key in failures.keys() - writer.done:
            writer.add_failure(key, failures[key])


def _check_distinct(caches: Sequence[PatchCache]) -> None:
    for first, second in itertools.combinations(caches, 2):
        if any(generator in second.manifest.generators for generator in first.manifest.generators):
            duplicate = next((key for key in first if key in second), None)
            if duplicate is not None:
                raise MergeError(
                    f"{first.path} and {second.path} both have patches of {duplicate!r} by the same generator: "
                    "remove one of them"
                )
