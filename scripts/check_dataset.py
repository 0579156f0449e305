#!/usr/bin/env python
"""Check datasets for errors that would stop or degrade training, and write a page of samples.

    python scripts/check_dataset.py --register beach.yaml
    python scripts/check_dataset.py coco_2017_val_panoptic --patches datasets/coco/sam_patches/val2017

Problems are: missing or unreadable images, images of another size, invalid label maps, panoptic PNGs, json files,
polygons and masks, ids that do not exist or differ between the panoptic and the instance json, boxes outside the image,
duplicate objects, and, if there is a patch cache, images without patches. Each is printed with its file, and the exit
status is 1 if there are any. Notes are printed about what may be intended: classes that never occur or have other names
than in the json, images without segments, label maps without an image, and objects that lie mostly inside another one
of their class.
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
    parser.add_argument("datasets", nargs="*", help="registered datasets (default: all of --register)")
    add_register_option(parser)
    parser.add_argument("--patches", type=Path, metavar="DIR", help="patch cache (default: that of the yaml)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/check"),
        metavar="DIR",
        help="folder for the pages (default %(default)s)",
    )
    parser.add_argument("--samples", type=int, default=6, metavar="N", help="images to draw (default %(default)s)")
    parser.add_argument("--show", type=int, default=50, metavar="N", help="problems to print (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
