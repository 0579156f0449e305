"""Evaluation of the patches of a cache or a generator on a dataset (Table 9), as a table, json and a recall curve."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from proposal_cache.errors import reason
from proposal_cache.generation.pipeline import generate
from proposal_cache.generators.base import Generator
from samcp.data.build import dataset_images
from samcp.data.datasets.custom.register import register_files
from samcp.data.files import write_image, write_json
from samcp.errors import UsageError, exit_with_message
from samcp.evaluation.patch_quality import ObjectFits, PatchQuality, iou_metrics, measure_dataset
from samcp.photo_patches import generator_hash
from samcp.visualization.figures import plot_recall
from samcp.vocabulary import Vocabulary


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate the patches, print a table and, with --output and --plot, write json and a recall curve."""
    _check_file("--output", arguments.output, "patches.json")
    _check_file("--plot", arguments.plot, "recall.png")
    register_files(arguments.register)
    name = arguments.dataset
    quality = measure_dataset(
        name, str(arguments.patches), limit=arguments.limit, workers=arguments.workers, strict=arguments.strict
    )
    print(make_table(quality.fits))
    if quality.failures:
        key, why = next(iter(quality.failures.items()))
        print(
            f"{len(quality.failures)} images count as missed, since their patches could not be generated (--strict "
            f"stops instead); the first is {key}: {why}"
        )
    per_image = quality.patches / quality.images
    print(f"{name}: {quality.images} images, {len(quality.fits)} objects, {per_image:.1f} patches per image")
    if arguments.output:
        write_json(arguments.output, describe(name, quality))
        print(f"all results, also per class: {arguments.output}")
    if arguments.plot:
        write_image(arguments.plot, plot_recall(quality.fits))
        print(f"recall curve: {arguments.plot}")


def validate(generator: Generator, folder: Path, datasets: Sequence[str], limit: int | None) -> dict[str, Any]:
    """Generate the patches of datasets, print Table 9, and return it with all results by dataset.

    Patches are kept in a subfolder of `folder` for this generator with its parameters and weights. Only the first
    `limit` images of a dataset are used; None for all.
    """
    results: dict[str, Any] = {}
    for name in datasets:
        cache = folder / generator_hash(generator) / name
        generate(dataset_images(name)[:limit], generator, cache, name)
        quality = measure_dataset(name, str(cache), limit=limit)
        print(make_table(quality.fits))
        results[name] = describe(name, quality)
        print(f"{name}: {quality.images} images, {results[name]['patches_per_image']:.1f} patches per image")
    return results


def make_table(fits: ObjectFits) -> str:
    """Format two lines per group of objects: best patch, and merged patches."""
    rows: list[list[Any]] = []
    for name, part in fits.groups():
        rows.append([name, len(part), *_metrics(part.best).values()])
        rows.append([f"{name}, merged", None, *_metrics(part.merged).values()])
    return tabulate(rows, ["", "objects", *iou_metrics(fits.best)], tablefmt="pipe", floatfmt=".1f", missingval="-")


def describe(dataset: str, quality: PatchQuality) -> dict[str, Any]:
    """Return all results for json; null for metrics of groups without objects."""
    vocabulary = Vocabulary.of_dataset(dataset)
    return {
        "dataset": dataset,
        "patches": str(quality.cache.path),
        "generators": list(quality.cache.manifest.generators),
        "images": quality.images,
        "images_without_patches": dict(quality.failures),
        "patches_per_image": quality.patches / quality.images,
        "groups": {name: _describe(part) for name, part in quality.fits.groups()},
        "classes": [
            {"name": vocabulary.names[c], "is_thing": bool(part.is_thing.any()), **_describe(part)}
            for c, part in quality.fits.of_classes()
        ],
    }


def _describe(fits: ObjectFits) -> dict[str, Any]:
    return {"objects": len(fits), "best_patch": _metrics(fits.best), "merged": _metrics(fits.merged)}


def _metrics(iou: np.ndarray) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in iou_metrics(iou).items()}


def _check_file(option: str, path: Path | None, example: str) -> None:
    """Raise UsageError if a file cannot be written, before the evaluation."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot create its folder ({reason(error)}); name another file") from error
    if path.is_dir():
        raise UsageError(f"{option} {path}: a folder; name a file in it, such as {path / example}")
