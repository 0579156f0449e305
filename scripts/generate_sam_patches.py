#!/usr/bin/env python
"""Generate the patches of a dataset registered in Detectron2, or of a folder, as `proposal-cache generate` does.

    python scripts/generate_sam_patches.py --dataset coco_2017_val_panoptic --checkpoint sam_vit_h_4b8939.pth \\
        --device cuda --output datasets/patches/coco_val
    python scripts/generate_sam_patches.py --images photos --workers 4 --output patches

`--device cuda` uses all GPUs of the machine. On several machines, use `--engine ray`, or start the command in a Slurm
array or under torchrun; see docs/scaling.md. Images that fail are skipped with a warning and recorded in the manifest;
the exit status is 1 if all of them fail. After an interruption, repeat the command to continue.
"""

import argparse
import difflib
import os
from functools import partial
from pathlib import Path

from proposal_cache.cli import run_command
from proposal_cache.generation import options
from proposal_cache.generation.sources import ImageFile, SourceError, from_list, image_key
from proposal_cache.generation.streams import find_sources
from samcp.command_line import add_register_option, command_parser


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.name and arguments.dataset:
        parser.error("--name is for --images; a dataset has a name")
    run_command(partial(_run, arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.dataset:
        return options.run(arguments, _dataset_images(arguments.dataset, arguments.register), arguments.dataset)
    name = arguments.name or Path(arguments.images).resolve().name
    return options.run(arguments, find_sources(arguments.images), name)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="registered in Detectron2; found under DETECTRON2_DATASETS")
    source.add_argument("--images", metavar="WHERE", help="folder, URL or tar files; see `proposal-cache generate`")
    parser.add_argument("--name", help="of the dataset of --images in the cache (default: last part of --images)")
    add_register_option(parser)
    options.add_options(parser)
    return parser


def _dataset_images(name: str, register: list[str]) -> list[ImageFile]:
    """Return the images of a registered dataset, with the keys under which training looks up their patches.

    Args:
        name: of the dataset.
        register: yaml files of custom datasets to register first.
    """
    from detectron2.data import DatasetCatalog

    from samcp.data.datasets.custom.register import register_files
    from samcp.data.patch_caches import image_root

    register_files(register)
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, list(DatasetCatalog), n=5, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"registered: {', '.join(sorted(DatasetCatalog))}"
        raise SourceError(f"there is no dataset {name!r}; {hint}")
    try:
        records = DatasetCatalog.get(name)
        root = image_root(name)
    except (OSError, AssertionError) as error:
        folder = os.environ.get("DETECTRON2_DATASETS")
        where = f"DETECTRON2_DATASETS is {folder}" if folder else "DETECTRON2_DATASETS is not set: ./datasets is used"
        raise SourceError(
            f"dataset {name!r} cannot be read: {error}. {where}; set it to the folder of the datasets"
        ) from error
    return from_list(((image_key(r["file_name"], root), r["file_name"]) for r in records), name)


if __name__ == "__main__":
    main()
