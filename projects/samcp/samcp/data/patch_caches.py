"""Find the patch caches of a config and check them against their datasets."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import log_first_n

from proposal_cache import CacheError, PatchCache, Patches
from samcp.data.datasets.catalog import require_registered

_SHOWN_KEYS = 3


def cache_paths(cfg: CfgNode, is_train: bool) -> dict[str, str]:
    """Return the patch cache of every dataset of DATASETS.TRAIN or TEST: dataset name -> path.

    If the config names no caches, use ``patches`` of the datasets' metadata, provided that all datasets have it.

    Raises:
        CacheError: a dataset is named twice, or the numbers of caches and datasets differ.
        DataError: a dataset is not registered.
    """
    split = "TRAIN" if is_train else "TEST"
    names, caches = cfg.DATASETS[split], cfg.DATASETS[f"PATCHES_{split}"]
    for name in names:
        require_registered(name)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise CacheError(
            f"DATASETS.{split} names {twice[0]!r} more than once, but a dataset has one patch cache; name it once, or "
            "register the same images under a second name, as a split of a custom dataset (docs/datasets.md)"
        )
    own = [MetadataCatalog.get(name).get("patches") for name in names]
    if not caches and all(own):
        caches = own
    if len(names) != len(caches):
        raise CacheError(
            f"DATASETS.PATCHES_{split} names {len(caches)} patch caches {tuple(caches)} for the {len(names)} datasets "
            f"of DATASETS.{split} {tuple(names)}; name one per dataset, in the same order. To make one: "
            + generate_command(names[min(len(caches), len(names) - 1)] if names else "NAME", "DIR")
        )
    return {name: _absolute(cache) for name, cache in zip(names, caches, strict=True)}


def open_cache(path: str, dataset: str) -> PatchCache:
    """Open the patch cache of a dataset.

    Raises:
        CacheError: the cache is missing (the message has the command that makes it), damaged, or of other images.
    """
    if not os.path.isdir(path):
        raise CacheError(f"{path}: no patch cache; make it with: {generate_command(dataset, path)}")
    cache = PatchCache(path)
    made_by = ", ".join(str(generator.get("name")) for generator in cache.manifest.generators)
    message = f"{path}: patches of {len(cache)} images of {cache.manifest.dataset}, made by {made_by}"
    log_first_n(logging.INFO, message, key="message")
    _check_images(cache, dataset)
    return cache


def check_keys(cache: PatchCache, dataset: str, keys: Sequence[str]) -> None:
    """Raise CacheError if a cache lacks patches of some images.

    Args:
        cache: the cache.
        dataset: name of the dataset, for the message.
        keys: of the dataset's images.
    """
    missing = cache.missing(keys)
    if missing:
        shown = ", ".join(missing[:_SHOWN_KEYS]) + (", ..." if len(missing) > _SHOWN_KEYS else "")
        if missing[0] in cache.manifest.failures:
            shown += f" (the first failed: {cache.manifest.failures[missing[0]]})"
        raise CacheError(
            f"{cache.path}: this patch cache of {cache.manifest.dataset!r} lacks {len(missing)} of the {len(keys)} "
            f"images of {dataset}: {shown}. Name another cache, or {_complete(str(cache.path))}"
        )


def read_patches(cache: PatchCache, record: Mapping[str, Any], size: tuple[int, int]) -> Patches:
    """Read the patches of one record.

    Args:
        cache: holds them.
        record: with "key", "patches_path", "file_name" and "dataset_name".
        size: (height, width) of the image.

    Raises:
        CacheError: the patches are missing, damaged, or of an image of another size.
    """
    key, path = record["key"], record["patches_path"]
    if key not in cache:
        raise CacheError(f"{path}: no patches of {key!r}; {_complete(path)}")
    patches = cache[key]
    if (patches.height, patches.width) != size:
        raise CacheError(
            f"{record['file_name']}: is {size[0]} x {size[1]} pixels (height x width), but the patches of {key!r} in "
            f"{path} are of {patches.height} x {patches.width}; name the cache of this dataset, or make it again with: "
            + generate_command(record["dataset_name"], path)
        )
    return patches


def image_root(dataset: str) -> str:
    """Return the image root of a registered dataset; keys are paths relative to it.

    Raises:
        CacheError: the metadata have no image_root.
    """
    root = _find_root(dataset)
    if not root:
        raise CacheError(
            f"dataset {dataset!r} has no image_root in its metadata, which the keys of a patch cache are relative to; "
            f"set it with MetadataCatalog.get({dataset!r}).image_root = FOLDER"
        )
    return root


def generate_command(dataset: str, path: str) -> str:
    """Return the command that generates a dataset's patches with SAM."""
    described_in = MetadataCatalog.get(dataset).get("described_in")  # a custom dataset
    register = f"--register {described_in} " if described_in else ""
    options = f"{register}--dataset {dataset} --output {path}"
    return f"python scripts/generate_sam_patches.py {options} --checkpoint FILE"


def _complete(path: str) -> str:
    return (
        "repeat the command that generated it, which processes only the missing images "
        f"(proposal-cache info {path} prints its dataset, generator and options)"
    )


def _find_root(dataset: str) -> str | None:
    metadata = MetadataCatalog.get(dataset)
    return metadata.get("image_root") or metadata.get("image_dir")


def _check_images(cache: PatchCache, dataset: str) -> None:
    """Raise CacheError for the cache of another dataset with other images: their keys may be equal by chance."""
    made_for = cache.manifest.dataset
    if made_for == dataset:
        return
    theirs = _find_root(made_for) if made_for in DatasetCatalog else None
    if not theirs:
        message = (
            f"{cache.path}: these patches were made for {made_for!r}, which is not registered here, so only names and "
            f"sizes show whether they are of the images of {dataset!r}"
        )
        log_first_n(logging.WARNING, message, key="message")
        return
    own = image_root(dataset)
    if Path(own).resolve() != Path(theirs).resolve():
        raise CacheError(
            f"{cache.path}: these patches are of {made_for!r}, with images in {theirs}, and not of {dataset!r}, with "
            f"images in {own}; name the cache of {dataset}, or make it with: {generate_command(dataset, 'DIR')}"
        )


def _absolute(path: str) -> str:
    return os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), path)
