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
from functools import partial
from pathlib import Path

from proposal_cache.cli import run_command
from proposal_cache.generation import options
from proposal_cache.generation.sources import ImageFile, SourceError
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
    """Return the images of a registered dataset.

    Args:
        name: of the dataset.
        register: yaml files of custom datasets to register first.

    Raises:
        SourceError: a yaml file or the dataset cannot be read, or the dataset is not registered.
    """
    from samcp.data.build import dataset_images
    from samcp.data.datasets.custom.register import register_files
    from samcp.errors import DataError

    try:
        register_files(register)
        return dataset_images(name)
    except DataError as error:  # which proposal_cache does not know
        raise SourceError(str(error)) from error


if __name__ == "__main__":
    main()
