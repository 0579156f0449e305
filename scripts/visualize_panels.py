#!/usr/bin/env python
"""Draw images of a dataset with their patches, prediction and ground truth (Fig. 8, 10 to 12 and 14).

    python scripts/visualize_panels.py --weights model_final.pth --dataset synthetic_val \\
        --patches datasets/patches/synthetic_val
    python scripts/visualize_panels.py ... --worst 5 --best 5
    python scripts/visualize_panels.py ... --images val_00003 val_00007

Draws the first images, those of --images, or the best and worst by their own PQ: the mean over the classes in an
image's prediction or ground truth. The task is that of the annotations: panoptic, semantic or instances. Classes, and
instances that match (IoU above 0.5), have the same colours in prediction and ground truth. Writes a picture per image,
and OUTPUT/index.html with all of them.
"""

import argparse
from pathlib import Path

from samcp.command_line import add_dataset_options, add_model_options, command_parser, count


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import visualize_panels

    visualize_panels.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    add_model_options(parser)
    add_dataset_options(parser)
    parser.add_argument("--images", nargs="+", default=[], metavar="KEY", help="keys of images, instead of the first")
    parser.add_argument("--best", type=count, default=0, metavar="N", help="the N images of the highest PQ")
    parser.add_argument("--worst", type=count, default=0, metavar="N", help="the N images of the lowest PQ")
    parser.add_argument("--limit", type=count, metavar="N", help="use the first N images (default: 8, or all to rank)")
    parser.add_argument(
        "--output", type=Path, default=Path("output/panels"), metavar="DIR", help="(default %(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
