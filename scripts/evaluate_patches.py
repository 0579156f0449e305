#!/usr/bin/env python
"""How well the patches of a cache fit a dataset's ground truth (Table 9), before any model is trained on them.

    python scripts/evaluate_patches.py --dataset coco_2017_val --patches datasets/coco/sam_patches/val2017
    python scripts/evaluate_patches.py --dataset coco_2017_val_panoptic --patches datasets/coco/sam_patches/val2017 \\
        --workers 4 --output output/patches.json
    python scripts/evaluate_patches.py --register beach/beach.yaml --dataset beach_val --patches beach/patches/val \\
        --limit 100

The first is the paper's table, of COCO's instances. Objects are all segments that are no crowd: instances, and what an
image shows of a class of stuff; in label maps all classes are such. A row has the mean IoU of the objects with the
patch that fits each best; the same over those whose best IoU is above 0.5; and the missing rates MR x, the share of
objects that no patch fits with an IoU above x. The row "merged" below it has the same of the union of all patches that
belong to an object as training has it, those that lie inside it by more than 0.8 above all (docs/method.md, 6): what a
model without a mistake would make of them. It is 0 for an object that no patch belongs to, whatever its best patch.
Small, medium and large are COCO's: below 32 x 32 pixels, below 96 x 96, and the rest. The json has the figures of every
class beside, the class that patches fit worst first.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from samcp.data.datasets.custom.register import add_register_option, register_files
from samcp.data.files import write_json
from samcp.errors import USER_ERRORS, UsageError
from samcp.evaluation.patch_quality import ObjectFits, PatchQuality, iou_metrics, measure_dataset
from samcp.vocabulary import Vocabulary


def main() -> None:
    arguments = _parse_arguments()
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


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="registered in Detectron2, or by --register")
    parser.add_argument("--patches", type=Path, required=True, metavar="DIR", help="the cache of its patches")
    add_register_option(parser)
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N images (default: all)")
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="processes (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a json of all figures, of every class too")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, not {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
