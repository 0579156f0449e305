"""Several caches into one: of other images, or with the patches of other generators for the same images."""

import os
from collections.abc import Sequence

import numpy as np

from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches
from proposal_cache.store import CacheWriter, PatchCache


class MergeError(CacheError):
    """Caches that cannot be one."""


def merge(caches: Sequence[PatchCache], output: str | os.PathLike[str], *, dataset: str | None = None) -> None:
    """Writes a cache that holds all images of some caches, each with its patches from all of them.

    `Patches.source` tells them apart in the new cache. An image that one of them lacks has the others' patches.
    Interrupted, the same call continues.

    Args:
        caches: at least one.
        output: directory of the new cache.
        dataset: its name, needed where the caches' own differ.

    Raises:
        MergeError: where datasets differ and none is named, or two caches have the same image by the same generator
            or in different sizes.
    """
    datasets = sorted({cache.manifest.dataset for cache in caches})
    if dataset is None and len(datasets) > 1:
        raise MergeError(
            f"the caches are of different datasets ({', '.join(datasets)}): name the new one with --dataset"
        )
    generators: list[dict] = []
    for cache in caches:
        generators += [g for g in cache.manifest.generators if g not in generators]
    places = [np.array([generators.index(g) for g in cache.manifest.generators], np.uint8) for cache in caches]
    if len(generators) > 256:
        raise MergeError(f"the caches are by {len(generators)} generators together; one cache can name 256")
    with CacheWriter(output, generators, dataset or datasets[0]) as writer:
        for key in sorted(set().union(*caches)):
            if key in writer.done:
                continue
            having = [i for i, cache in enumerate(caches) if key in cache]
            _check_distinct(key, [caches[i] for i in having])
            parts = [_renumbered(caches[i][key], places[i]) for i in having]
            writer.add(key, Patches.concatenate(parts))


def _check_distinct(key: str, caches: Sequence[PatchCache]) -> None:
    seen: list[dict] = []
    for cache in caches:
        for generator in cache.manifest.generators:
            if generator in seen:
                raise MergeError(f"{cache.path} has patches of {key!r} by the same generator as another of the caches")
        seen += cache.manifest.generators


def _renumbered(patches: Patches, places: np.ndarray) -> Patches:
    if len(patches) and patches.source.max() >= len(places):
        raise MergeError(f"patches name generator {patches.source.max()}, of {len(places)}: the cache is damaged")
    return Patches.from_rles(
        patches.height,
        patches.width,
        patches.rles,
        predicted_iou=patches.predicted_iou,
        stability_score=patches.stability_score,
        source=places[patches.source],
    )
