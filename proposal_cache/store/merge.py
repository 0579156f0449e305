"""Several caches into one: of other images, or with the patches of other generators for the same images."""

import hashlib
import itertools
import os
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches
from proposal_cache.store.reader import PatchCache
from proposal_cache.store.writer import CacheWriter


class MergeError(CacheError):
    """Caches that cannot be one."""


def merge(
    caches: Sequence[PatchCache],
    output: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    progress: bool = False,
) -> None:
    """Writes a cache that holds all images of some caches, each with its patches from all of them.

    `Patches.source` tells them apart in the new cache. An image that one of them lacks has the others' patches; one
    that none of them has, since it failed, is a failure still. Interrupted, the same call continues, provided that the
    caches are what they were.

    Args:
        caches: at least one.
        output: directory of the new cache.
        dataset: its name, needed where the caches' own differ.
        progress: show a bar on stderr.

    Raises:
        MergeError: where datasets differ and none is named, or two caches have the same image by the same generator
            (nothing is written then) or in different sizes.
        MismatchError: where the output holds something else, or what the caches held before they were changed.
    """
    datasets = sorted({cache.manifest.dataset for cache in caches})
    if dataset is None and len(datasets) > 1:
        raise MergeError(
            f"the caches are of different datasets ({', '.join(datasets)}): name the new one with --dataset"
        )
    generators: list[dict] = []
    for cache in caches:
        generators += [g for g in cache.manifest.generators if g not in generators]
    if len(generators) > 256:
        raise MergeError(f"the caches are by {len(generators)} generators together; one cache can name 256")
    places = [np.array([generators.index(g) for g in cache.manifest.generators], np.uint8) for cache in caches]
    _check_distinct(caches)
    keys = sorted(set().union(*caches))
    failures = {key: reason for cache in caches for key, reason in cache.manifest.failures.items()}
    inputs = [_fingerprint(cache) for cache in caches]
    with CacheWriter(output, generators, dataset or datasets[0], inputs=inputs) as writer:
        for key in tqdm(keys, "merging", unit="image", disable=not progress):
            if key not in writer.done:
                parts = [_renumbered(caches[i][key], places[i]) for i, cache in enumerate(caches) if key in cache]
                writer.add(key, Patches.concatenate(parts))
        for key in failures.keys() - writer.done:
            writer.add_failure(key, failures[key])


def _fingerprint(cache: PatchCache) -> str:
    """Of the keys and the number of patches, not of the files: the same patches may be in other shards."""
    content = "\n".join([str(cache.manifest.patches), *cache])
    return hashlib.sha256(content.encode()).hexdigest()


def _check_distinct(caches: Sequence[PatchCache]) -> None:
    """That no two caches have the same image by the same generator."""
    for first, second in itertools.combinations(caches, 2):
        if any(generator in second.manifest.generators for generator in first.manifest.generators):
            double = next((key for key in first if key in second), None)
            if double is not None:
                raise MergeError(
                    f"{first.path} and {second.path} both have patches of {double!r} by the same generator: "
                    "leave one of them out"
                )


def _renumbered(patches: Patches, places: np.ndarray) -> Patches:
    return Patches.from_rles(
        patches.height,
        patches.width,
        patches.rles,
        predicted_iou=patches.predicted_iou,
        stability_score=patches.stability_score,
        source=places[patches.source],
    )
