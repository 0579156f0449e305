"""Scenes and patches of the tables, made when they are first needed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from proposal_cache import ContourGenerator, PatchCache
from proposal_cache.generation.engines import GeneratorFactory
from proposal_cache.generation.engines.local import LocalEngine
from proposal_cache.generation.pipeline import generate
from proposal_cache.generators.base import Generator
from proposal_cache.store.merge import merge
from samcp.data.build import dataset_images
from samcp.miniature.graph_regions import GraphRegions

# Name -> class of the generator and its parameters. The second has few patches, so that it misses small objects.
GENERATORS: Mapping[str, tuple[Callable[..., Generator], Mapping[str, Any]]] = {
    "contours": (ContourGenerator, {"parts": 60, "patches": 100}),
    "few_contours": (ContourGenerator, {"parts": 16, "patches": 24}),
    "graph_regions": (GraphRegions, {}),
}


def patch_folder(dataset: str, patches: str) -> str:
    """Return the patch cache of a dataset, relative to DETECTRON2_DATASETS.

    Args:
        patches: one of GENERATORS, or several of them with a + between, as in "contours+graph_regions".
    """
    return f"patches/{patches}/{dataset}"


def load_generator(name: str) -> Generator:
    """Return one of GENERATORS."""
    generator, parameters = GENERATORS[name]
    return generator(**parameters)


def make_patches(wanted: Iterable[tuple[str, str]], workers: int) -> None:
    """Generate the patches of (dataset, patches) pairs that are missing, and merge those of several generators."""
    pairs = sorted(set(wanted))
    for dataset, name in sorted({(dataset, name) for dataset, patches in pairs for name in patches.split("+")}):
        _generate(dataset, name, workers)
    for dataset, patches in pairs:
        if "+" in patches:
            caches = [PatchCache(_absolute(dataset, name)) for name in patches.split("+")]
            merge(caches, _absolute(dataset, patches))


@cache
def data_identity(dataset: str, patches: str) -> str:
    """Return a hash of the annotations of a dataset and of the generators of its patches."""
    metadata = MetadataCatalog.get(dataset)
    annotations = Path(metadata.get("panoptic_json") or metadata.json_file).read_bytes()
    generators = PatchCache(_absolute(dataset, patches)).manifest.generators
    return hashlib.sha256(annotations + repr(generators).encode()).hexdigest()


def _generate(dataset: str, name: str, workers: int) -> None:
    factory, engine = GeneratorFactory(partial(_load_for_device, name)), LocalEngine(workers=workers)
    generate(dataset_images(dataset), factory, _absolute(dataset, name), dataset, engine=engine)


def _load_for_device(name: str, device: str) -> Generator:
    """Return one of GENERATORS; all run on the CPU."""
    return load_generator(name)


def _absolute(dataset: str, patches: str) -> Path:
    return Path(os.environ["DETECTRON2_DATASETS"], patch_folder(dataset, patches))
