#!/usr/bin/env python
"""Look through a dataset for what would stop a training or spoil it, and paint samples of it.

    python scripts/check_dataset.py --register beach.yaml
    python scripts/check_dataset.py coco_2017_val_panoptic --patches datasets/coco/sam_patches/val2017

Checked are: every image and its size; label maps, panoptic PNGs and their json, polygons and masks; ids, also those of
a panoptic and an instance json against each other; boxes outside the image; objects that were drawn twice; and, where
patches are there, that every image has its own. Each problem is named with its file. The exit status is 1 if there is
any. What may be meant so is remarked beside: classes that never occur or have other words than the json's, images
without a segment, label maps without an image, objects that lie for the most part in another of their class.
"""

import argparse
from pathlib import Path

from samcp.command_line import add_register_option, command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import check_dataset

    check_dataset.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("datasets", nargs="*", help="registered names (default: all of --register)")
    add_register_option(parser)
    parser.add_argument("--patches", type=Path, metavar="DIR", help="their cache (default: the one the yaml names)")
    parser.add_argument(
        "--output", type=Path, default=Path("output/check"), metavar="DIR", help="of the pages (default %(default)s)"
    )
    parser.add_argument("--samples", type=int, default=6, metavar="N", help="images to paint (default %(default)s)")
    parser.add_argument("--show", type=int, default=50, metavar="N", help="problems to print (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
