"""Quality of a cache's patches on a dataset (Table 9), as a table and a json."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from samcp.data.datasets.custom.register import register_files
from samcp.data.files import write_json
from samcp.errors import USER_ERRORS, UsageError
from samcp.evaluation.patch_quality import ObjectFits, PatchQuality, iou_metrics, measure_dataset
from samcp.vocabulary import Vocabulary


def main(arguments: argparse.Namespace) -> None:
    try:
        run(arguments)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the table, and write the json if it was asked for."""
    _check_output(arguments.output)
    register_files(arguments.register)
    name = arguments.dataset
    quality = measure_dataset(name, str(arguments.patches), limit=arguments.limit, workers=arguments.workers)
    print(make_table(quality.fits))
    if quality.failures:
        key, reason = next(iter(quality.failures.items()))
        print(
            f"{len(quality.failures)} images count as without patches, as none could be made of them, first {key}: "
            + reason
        )
    per_image = quality.patches / quality.images
    print(f"{name}: {quality.images} images, {len(quality.fits)} objects, {per_image:.1f} patches an image")
    if arguments.output:
        write_json(arguments.output, describe(name, quality))
        print(f"all figures, of every class too: {arguments.output}")


def make_table(fits: ObjectFits) -> str:
    """Two lines for each group of objects: the best patch of each, and its patches merged."""
    rows: list[list[Any]] = []
    for name, part in fits.groups():
        rows.append([name, len(part), *_figures(part.best).values()])
        rows.append([f"{name}, merged", None, *_figures(part.merged).values()])
    return tabulate(rows, ["", "objects", *iou_metrics(fits.best)], tablefmt="pipe", floatfmt=".1f", missingval="-")


def describe(dataset: str, quality: PatchQuality) -> dict[str, Any]:
    """All that was measured, as json has it: null for a figure that no object has."""
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
    return {"objects": len(fits), "best_patch": _figures(fits.best), "merged": _figures(fits.merged)}


def _figures(iou: np.ndarray) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in iou_metrics(iou).items()}


def _check_output(path: Path | None) -> None:
    """Make sure of the json's place before images are gone through for it."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {path}: its folder cannot be made ({error}); name another file") from error
    if path.is_dir():
        raise UsageError(f"--output {path}: is a folder; name a file in it, as in {path / 'patches.json'}")
