#!/usr/bin/env python
"""Check datasets for errors that would stop or degrade training, and write a page of samples.

    python scripts/check_dataset.py --register beach.yaml
    python scripts/check_dataset.py coco_2017_val_panoptic --patches datasets/coco/sam_patches/val2017

Problems are: missing or unreadable images, images of another size, invalid label maps, panoptic PNGs, json files,
polygons and masks, ids that do not exist or differ between the panoptic and the instance json, boxes outside the image,
duplicate objects, and, if there is a patch cache, images without patches. Each is printed with its file, and the exit
status is 1 if there are any. Notes are printed about what may be intended: classes that never occur or have other names
than in the json, labels that seem to count from 1, images that EXIF turns, images without segments, label maps without
an image, and objects that lie mostly inside another one of their class.
"""

import argparse

from samcp.command_line import add_check_options, command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import check_dataset

    check_dataset.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    add_check_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
